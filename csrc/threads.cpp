#include "threads.hpp"

#include <chrono>
#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace headrace {
namespace {

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

std::int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr int kPausesPerLook = 16;  // pauses between two looks at the clock
constexpr std::uint32_t kClosed = 0xffffffffu;  // a tile number that no region has

std::uint64_t ticket_of(std::uint32_t region, std::uint32_t tile) { return static_cast<std::uint64_t>(region) << 32 | tile; }

}  // namespace

ThreadPool::ThreadPool(int threads, int spin_microseconds) : spin_ticks_(spin_microseconds * 1000LL) { resize(threads); }

ThreadPool::~ThreadPool() { stop_workers(); }

void ThreadPool::resize(int threads) {
    if (threads < 1 || threads > kMostThreads) throw std::invalid_argument("threads must be between 1 and 256");
    std::lock_guard lock(region_mutex_);
    if (threads == this->threads()) return;
    stop_workers();
    start_workers(threads);
}

void ThreadPool::start_workers(int threads) {
    try {
        for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { work(worker); });
    } catch (...) {  // the system gives no more threads: those that run must not outlive the pool
        stop_workers();
        throw;
    }
}

void ThreadPool::stop_workers() {
    stopping_.store(true);
    region_.fetch_add(1);
    region_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    stopping_.store(false);
}

// The next region closes the ticket before it writes call_, body_ and tiles_ (release fence there, acquire fence here), so a
// claim that wins has read the fields of its own region, however late the worker is.
bool ThreadPool::take_tiles(std::uint32_t region, int worker) {
    bool worked = false;
    std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (;;) {
        const Call call = call_.load(std::memory_order_relaxed);
        void* body = body_.load(std::memory_order_relaxed);
        const int tiles = tiles_.load(std::memory_order_relaxed);
        std::atomic_thread_fence(std::memory_order_acquire);
        const auto tile = static_cast<std::uint32_t>(ticket);
        if (static_cast<std::uint32_t>(ticket >> 32) != region || tile >= static_cast<std::uint32_t>(tiles)) return worked;
        if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
        call(body, static_cast<int>(tile), worker);
        done_.fetch_add(1, std::memory_order_release);
        worked = true;
        ticket = ticket_.load(std::memory_order_acquire);
    }
}

void ThreadPool::run(int tiles, Call call, void* body) {
    if (tiles <= 0) return;
    std::lock_guard lock(region_mutex_);
    if (workers_.empty() || tiles == 1) {
        for (int tile = 0; tile < tiles; ++tile) call(body, tile, 0);
        return;
    }
    const std::uint32_t region = region_.load(std::memory_order_relaxed) + 1;
    ticket_.store(ticket_of(region, kClosed), std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    done_.store(0, std::memory_order_relaxed);
    call_.store(call, std::memory_order_relaxed);
    body_.store(body, std::memory_order_relaxed);
    tiles_.store(tiles, std::memory_order_relaxed);
    ticket_.store(ticket_of(region, 0), std::memory_order_release);
    region_.store(region);
    if (sleepers_.load() > 0) region_.notify_all();
    take_tiles(region, 0);
    // A thread that holds a last tile may have lost its core to us: give it back after a short while.
    for (int spins = 0; done_.load(std::memory_order_acquire) != tiles; ++spins) {
        if (spins < 2000) relax();
        else std::this_thread::yield();
    }
}

void ThreadPool::work(int worker) {
    std::uint32_t seen = region_.load();
    // A region may have opened before this thread came up; taking part in it late is as good as any time.
    if (static_cast<std::uint32_t>(ticket_.load(std::memory_order_acquire) >> 32) == seen) take_tiles(seen, worker);
    std::int64_t idle_since = now_ns();
    int pauses = 0;
    while (!stopping_.load(std::memory_order_relaxed)) {
        const std::uint32_t region = region_.load(std::memory_order_acquire);
        if (region != seen) {
            seen = region;
            if (take_tiles(region, worker)) idle_since = now_ns();
            continue;
        }
        relax();
        if (++pauses % kPausesPerLook != 0 || now_ns() - idle_since < spin_ticks_) continue;
        sleepers_.fetch_add(1);
        region_.wait(seen);
        sleepers_.fetch_sub(1);
        idle_since = now_ns();
    }
}

double region_seconds(ThreadPool& pool, int tiles, int repeat) {
    const std::int64_t start = now_ns();
    for (int i = 0; i < repeat; ++i) pool.parallel_for(tiles, [](int, int) {});
    return static_cast<double>(now_ns() - start) * 1e-9 / repeat;
}

std::vector<int> cover_counts(ThreadPool& pool, int tiles, int regions) {
    if (tiles < 1) throw std::invalid_argument("tiles must be at least 1");
    std::vector<std::atomic<int>> counts(static_cast<std::size_t>(tiles));
    for (int region = 0; region < regions; ++region)
        pool.parallel_for(region % tiles + 1, [&](int tile, int) { counts[static_cast<std::size_t>(tile)].fetch_add(1, std::memory_order_relaxed); });
    return {counts.begin(), counts.end()};
}

}  // namespace headrace
