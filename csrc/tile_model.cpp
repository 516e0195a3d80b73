#include "tile_model.hpp"

namespace headrace {
namespace {

std::atomic<int> configured_threads{0};
std::atomic<long> shapes_loaded{0};

[[noreturn]] void fault(const std::string& what) { throw std::logic_error("tile fault: " + what); }

void check(const TileConfig& config) {
    if (config.palette != 1) fault("palette " + std::to_string(config.palette) + " is unknown");
    if (config.start_row != 0) fault("a start row is for restarted loads only");
    for (const std::uint8_t byte : config.reserved)
        if (byte != 0) fault("a reserved byte is set");
    for (int t = 0; t < 16; ++t) {
        const int rows = config.rows[t], bytes = config.row_bytes[t];
        if (t >= 8 && (rows != 0 || bytes != 0)) fault("shape of tile " + std::to_string(t) + ", there are 8");
        if (rows > kTileRowLimit || bytes > kTileRowBytes) fault("tile " + std::to_string(t) + " is too large");
        if ((rows == 0) != (bytes == 0)) fault("tile " + std::to_string(t) + " has rows or bytes, but not both");
    }
}

// The dot products of one row with all channels. The sums wrap, as they do in the unit.
template <class A, class B>
void dot_row(const std::uint8_t* a, const std::uint8_t (*b)[kTileRowBytes], int quads, int channels, std::uint8_t* sums) {
    std::uint32_t total[kTileRowBytes / 4];
    std::memcpy(total, sums, sizeof total);
    for (int k = 0; k < quads; ++k)
        for (int n = 0; n < channels; ++n)
            for (int j = 0; j < 4; ++j)
                total[n] += static_cast<std::uint32_t>(static_cast<A>(a[4 * k + j]) * static_cast<B>(b[k][4 * n + j]));
    std::memcpy(sums, total, sizeof total);
}

}  // namespace

TileModel& tile_model() {
    thread_local TileModel model;
    return model;
}

void configure_tile_model(const TileConfig& config) noexcept { tile_model().configure(config); }

void release_tile_model() noexcept { tile_model().release(); }

int tile_models_configured() { return configured_threads.load(); }

long tile_model_shapes() { return shapes_loaded.load(); }

void TileModel::configure(const TileConfig& config) {
    if (config.palette == 0) return release();
    check(config);
    if (!configured()) configured_threads.fetch_add(1);
    shapes_loaded.fetch_add(1);
    config_ = config;
    std::memset(tiles_, 0, sizeof tiles_);
}

void TileModel::release() {
    if (configured()) configured_threads.fetch_sub(1);
    config_ = {};
    std::memset(tiles_, 0, sizeof tiles_);
}

int TileModel::shaped(int t) const {
    if (t < 0 || t > 7 || config_.rows[t] == 0) fault("tile " + std::to_string(t) + " has no shape");
    return t;
}

void TileModel::load(int t, const void* from, std::size_t stride) {
    const int count = rows(t), bytes = row_bytes(t);
    std::memset(tiles_[t], 0, sizeof tiles_[t]);
    for (int row = 0; row < count; ++row)
        std::memcpy(tiles_[t][row], static_cast<const std::uint8_t*>(from) + static_cast<std::size_t>(row) * stride, static_cast<std::size_t>(bytes));
}

void TileModel::store(int t, void* to, std::size_t stride) const {
    const int count = rows(t), bytes = row_bytes(t);
    for (int row = 0; row < count; ++row)
        std::memcpy(static_cast<std::uint8_t*>(to) + static_cast<std::size_t>(row) * stride, tiles_[t][row], static_cast<std::size_t>(bytes));
}

void TileModel::dot(int sums, int a, int b, TileSigns signs) {
    if (sums == a || sums == b || a == b) fault("a product needs three different tiles");
    if (row_bytes(sums) % 4 != 0 || row_bytes(a) % 4 != 0) fault("rows of a product are dwords");
    if (rows(sums) != rows(a) || row_bytes(sums) != row_bytes(b) || row_bytes(a) != 4 * rows(b)) fault("shapes of a product do not fit");
    using Dot = void (*)(const std::uint8_t*, const std::uint8_t (*)[kTileRowBytes], int, int, std::uint8_t*);
    constexpr Dot kDots[] = {dot_row<std::int8_t, std::int8_t>, dot_row<std::int8_t, std::uint8_t>, dot_row<std::uint8_t, std::int8_t>,
                             dot_row<std::uint8_t, std::uint8_t>};
    for (int row = 0; row < rows(sums); ++row)
        kDots[static_cast<int>(signs)](tiles_[a][row], tiles_[b], rows(b), row_bytes(sums) / 4, tiles_[sums][row]);
    for (int row = rows(sums); row < kTileRowLimit; ++row) std::memset(tiles_[sums][row], 0, kTileRowBytes);
}

}  // namespace headrace
