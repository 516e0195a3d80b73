// A pool of threads that take small tiles from a counter.
//
// The caller is one of the threads. Workers spin for a few tens of microseconds after a region and then sleep on a futex,
// so a chain of regions pays no wake-up and an idle server burns no CPU. A region is over when all its tiles are done,
// never when all workers have reported: a worker that the system has preempted delays the others by its own tile at most.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace headrace {

inline constexpr int kMostThreads = 256;

class ThreadPool {
  public:
    explicit ThreadPool(int threads = 1, int spin_microseconds = 30);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }
    void resize(int threads);  // 1 … 256; waits for a running region

    // Calls fn(tile, worker) once for every tile in 0 … tiles-1; worker in 0 … threads-1 names scratch that is not shared.
    // fn must not throw and must not start another region.
    template <class Fn>
    void parallel_for(int tiles, Fn&& fn) {
        using Body = std::remove_reference_t<Fn>;
        run(tiles, [](void* body, int tile, int worker) { (*static_cast<Body*>(body))(tile, worker); },
            const_cast<void*>(static_cast<const void*>(&fn)));
    }

  private:
    using Call = void (*)(void* body, int tile, int worker);

    void run(int tiles, Call call, void* body);
    void work(int worker);
    bool take_tiles(std::uint32_t region, int worker);
    void stop_workers();
    void start_workers(int threads);

    // Region number (high half) and next tile (low half) change together, so that a claim made for an old region fails.
    alignas(64) std::atomic<std::uint64_t> ticket_{0};
    alignas(64) std::atomic<int> done_{0};
    alignas(64) std::atomic<std::uint32_t> region_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<Call> call_{nullptr};
    std::atomic<void*> body_{nullptr};
    std::atomic<int> tiles_{0};
    std::atomic<bool> stopping_{false};
    std::int64_t spin_ticks_;
    std::mutex region_mutex_;
    std::vector<std::thread> workers_;
};

// Mean seconds of a region of empty tiles: what a region costs by itself.
double region_seconds(ThreadPool& pool, int tiles, int repeat);

// Runs `regions` regions whose lengths step through 1 … tiles and counts how often each tile ran; a self-check.
std::vector<int> cover_counts(ThreadPool& pool, int tiles, int regions);

}  // namespace headrace
