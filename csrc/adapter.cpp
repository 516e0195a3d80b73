#include "adapter.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>
#include <tuple>

namespace headrace {
namespace {

constexpr int kUnitBytes = 32;           // sixteen values: every row and panel is a multiple, and begins at one
constexpr int kAhead = 8;                 // stretches of panels whose numbers are on their way while others are added
constexpr std::size_t kMostFetched = 4096; // values of one stretch that are asked for at once
constexpr int kMostAlone = 4;             // rows of a segment whose numbers are read in one stretch for all columns
constexpr int kManySegments = 4;          // as few as that leave threads without work when a segment is not split
constexpr int kStretchAhead = 2048;       // values between what is added and what is fetched of such a stretch
constexpr std::size_t kTileWork = 49152; // bytes of a tile of shrinking, times a quarter of the rows that meet them

std::size_t unsign(int value) { return static_cast<std::size_t>(value); }

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::string name_of(std::size_t adapter, const char* array) { return "adapter " + std::to_string(adapter) + ": " + array; }

// A run of `count` pieces of `bytes`, the first at `offset` of page `page`, stays inside the adapter's pages.
bool run_fits(std::int32_t page, std::int32_t offset, std::size_t bytes, int count, std::size_t pages, std::size_t page_bytes) {
    if (page < 0 || offset < 0 || offset % kUnitBytes || unsign(offset) > page_bytes || bytes > page_bytes) return false;
    const std::size_t fit = (page_bytes - unsign(offset)) / bytes, each = page_bytes / bytes;
    const std::size_t rest = unsign(count) > fit ? unsign(count) - fit : 0;
    return unsign(page) + 1 + (rest + each - 1) / each <= pages;
}

void check_places(const AdapterView& adapter, std::size_t number, const std::vector<AdapterSides>& sides, std::size_t page_bytes) {
    for (std::size_t row = 0; row < sides.size() * kAdapterModules; ++row) {
        const std::int32_t* place = adapter.places.data + row * kPlaceFields;
        const AdapterSides& layer = sides[row / kAdapterModules];
        const std::size_t module = row % kAdapterModules;
        if (place[0] == 0) continue;
        const bool known = place[0] > 0 && place[0] <= kMaxAdapterRank && layer.inputs[module] > 0;
        if (!known || !std::isfinite(adapter.scales[row]) ||
            !run_fits(place[1], place[2], unsign(layer.inputs[module]) * 2, place[0], adapter.pages.size, page_bytes) ||
            !run_fits(place[3], place[4], unsign(place[0]) * kUnitBytes, layer.panels[module], adapter.pages.size, page_bytes))
            refuse(name_of(number, "places[") + std::to_string(row) + "] has a rank, scale or place out of bounds");
    }
}

void check_adapter(const AdapterView& adapter, std::size_t number, const PoolView& pool, const std::vector<AdapterSides>& sides,
                   const std::vector<bool>& written) {
    const std::size_t rows = sides.size() * kAdapterModules;
    if (adapter.places.size != rows * kPlaceFields || adapter.scale_count != rows)
        refuse(name_of(number, "places and scales") + " must have " + std::to_string(rows) + " rows, one a layer and module");
    for (std::size_t i = 0; i < adapter.pages.size; ++i) {
        const std::int32_t page = adapter.pages[i];
        if (page < 0 || unsign(page) >= pool.pages)
            refuse(name_of(number, "pages[") + std::to_string(i) + "] is " + std::to_string(page) + ": the pool has " +
                   std::to_string(pool.pages) + " pages");
        if (written[unsign(page)])
            refuse(name_of(number, "pages[") + std::to_string(i) + "] is " + std::to_string(page) + ": the step writes that page");
    }
    check_places(adapter, number, sides, pool.page_bytes);
}

}  // namespace

void check_adapters(const BatchView& batch, const PoolView& pool, const std::vector<AdapterSides>& sides,
                    const std::vector<bool>& written) {
    const AdaptersView& own = *batch.adapters;
    if (own.starts.size != batch.slice_starts.size) refuse("adapters: starts must have one entry a slice and one more");
    if (own.starts[0] != 0 || unsign(own.starts[own.starts.size - 1]) != own.ids.size || own.scale_count != own.ids.size)
        refuse("adapters: starts must go from 0 to the number of ids, and each id needs a scale");
    for (std::size_t i = 1; i < own.starts.size; ++i)
        if (own.starts[i] < own.starts[i - 1]) refuse("adapters: starts[" + std::to_string(i) + "] is below the one before");
    for (std::size_t i = 0; i < own.ids.size; ++i) {
        if (own.ids[i] < 0 || unsign(own.ids[i]) >= own.adapters.size())
            refuse("adapters: ids[" + std::to_string(i) + "] is " + std::to_string(own.ids[i]) + ": the step has " +
                   std::to_string(own.adapters.size()) + " adapters");
        if (!std::isfinite(own.scales[i])) refuse("adapters: scales[" + std::to_string(i) + "] is not finite");
    }
    if (pool.page_bytes % kUnitBytes) refuse("adapters: pages must have a multiple of 32 bytes");
    for (std::size_t i = 0; i < own.adapters.size(); ++i) check_adapter(own.adapters[i], i, pool, sides, written);
}

void AdapterRunner::begin(const BatchView& batch, const PoolView& pool, const std::vector<AdapterSides>& sides) {
    adapters_ = batch.adapters;
    active_ = false;
    segments_.clear();
    if (adapters_ == nullptr) return;
    pool_ = pool;
    sides_ = &sides;
    row_slice_.resize(batch.token_ids.size);
    for (int slice = 0; slice < batch.slices(); ++slice)
        std::fill(row_slice_.begin() + batch.slice_starts[unsign(slice)], row_slice_.begin() + batch.slice_starts[unsign(slice) + 1], slice);
    collect(row_slice_);
}

void AdapterRunner::gather(const BatchView& batch) {
    if (adapters_ == nullptr) return;
    std::vector<int> slices;
    for (std::size_t i = 0; i < batch.output_rows.size; ++i) slices.push_back(row_slice_[unsign(batch.output_rows[i])]);
    collect(slices);
}

// Segments of rows that belong to these slices. Within a stripe all rows take their first adapter, then all their second: so
// sums of a row are added in the order of its list, whoever shares the stripe.
void AdapterRunner::collect(const std::vector<int>& slices) {
    entries_.clear();
    for (std::size_t row = 0; row < slices.size(); ++row) {
        const std::int32_t first = adapters_->starts[unsign(slices[row])], end = adapters_->starts[unsign(slices[row]) + 1];
        for (std::int32_t i = first; i < end; ++i)
            entries_.push_back({static_cast<int>(row) / kStripeRows, i - first, adapters_->ids[unsign(i)], static_cast<int>(row),
                                adapters_->scales[i]});
    }
    std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
        return std::tie(a.stripe, a.turn, a.adapter, a.row) < std::tie(b.stripe, b.turn, b.adapter, b.row);
    });
    rows_.clear();
    factors_.clear();
    segments_.clear();
    numbers_.resize(entries_.size());
    std::iota(numbers_.begin(), numbers_.end(), 0);
    stripe_segments_.assign((slices.size() + kStripeRows - 1) / kStripeRows + 1, 0);
    for (std::size_t i = 0; i < entries_.size(); ++i) {
        const Entry& entry = entries_[i];
        rows_.push_back(entry.row);
        factors_.push_back(entry.factor);
        const Entry& before = entries_[i == 0 ? 0 : i - 1];
        if (i > 0 && std::tie(before.stripe, before.turn, before.adapter) == std::tie(entry.stripe, entry.turn, entry.adapter)) {
            ++segments_.back().count;
            continue;
        }
        segments_.push_back({entry.adapter, static_cast<int>(i), 1});
        ++stripe_segments_[unsign(entry.stripe) + 1];
    }
    for (std::size_t i = 1; i < stripe_segments_.size(); ++i) stripe_segments_[i] += stripe_segments_[i - 1];
}

AdapterRunner::Run AdapterRunner::run(std::int32_t page, std::int32_t offset, std::size_t bytes) const {
    return {page, offset, bytes, static_cast<int>((pool_.page_bytes - unsign(offset)) / bytes), static_cast<int>(pool_.page_bytes / bytes)};
}

// Piece `index` of a run, and how many pieces from it on lie beside each other.
const std::uint16_t* AdapterRunner::piece(int adapter, const Run& run, int index, int* adjacent) const {
    std::int32_t page = run.page, offset = run.offset;
    int slot = index, room = run.fit;
    if (index >= run.fit) {
        page += 1 + (index - run.fit) / run.each;
        slot = (index - run.fit) % run.each;
        offset = 0;
        room = run.each;
    }
    *adjacent = room - slot;
    const std::int32_t id = adapters_->adapters[unsign(adapter)].pages[unsign(page)];
    return reinterpret_cast<const std::uint16_t*>(pool_.data + unsign(id) * pool_.page_bytes + unsign(offset) + unsign(slot) * run.bytes);
}

// The segment's parts for the modules at hand, and its rows of A cut into pieces.
void AdapterRunner::prepare(Segment& segment, int number) {
    const AdapterView& view = adapters_->adapters[unsign(segment.adapter)];
    const int most = segment.count > 8 ? 4 : 8;  // ranks of a piece: their rows of A stay in the innermost cache
    segment.width = 0;
    for (int module = 0; module < modules_; ++module) {
        const std::size_t row = unsign(layer_) * kAdapterModules + unsign(first_module_ + module);
        const std::int32_t* place = view.places.data + row * kPlaceFields;
        const int inputs = (*sides_)[unsign(layer_)].inputs[first_module_ + module];
        if (place[0] == 0) {
            parts_.push_back({});
            continue;
        }
        parts_.push_back({place[0], segment.width, view.scales[row], run(place[3], place[4], unsign(place[0]) * kUnitBytes)});
        segment.width += place[0];
        const Run a = run(place[1], place[2], unsign(inputs) * 2);
        for (int rank = 0, ranks = 0; rank < place[0]; rank += ranks) {
            int adjacent = 0;
            const std::uint16_t* begin = piece(segment.adapter, a, rank, &adjacent);
            ranks = std::min({place[0] - rank, adjacent, most});
            pieces_.push_back({number, number * modules_ + module, rank, ranks, inputs, begin});
        }
    }
}

void AdapterRunner::shrink(const KernelTable& table, ThreadPool& threads, int layer, AdapterModule first, int count, const float* x,
                           std::size_t x_stride) {
    active_ = false;
    if (segments_.empty()) return;
    layer_ = layer;
    first_module_ = first;
    modules_ = count;
    panels_ = 0;
    for (int module = 0; module < count; ++module) panels_ += (*sides_)[unsign(layer)].panels[first + module];
    parts_.clear();
    pieces_.clear();
    std::size_t total = 0, sums = 0;
    for (std::size_t i = 0; i < segments_.size(); ++i) {
        Segment& segment = segments_[i];
        prepare(segment, static_cast<int>(i));
        segment.v = total;
        total += unsign(segment.width) * unsign(segment.count);
        segment.alone = segments_.size() >= kManySegments && segment.count <= kMostAlone && has_every_module(segment);
        segment.sums = sums;
        if (segment.alone) sums += unsign(segment.count) * unsign(panels_) * kPanelWidth;
    }
    if (pieces_.empty()) return;
    active_ = true;
    v_.reserve(total);
    sums_.reserve(sums);
    cut_tiles();
    threads.parallel_for(static_cast<int>(tiles_.size()) - 1, [&](int tile, int) { shrink_tile(table, tile, x, x_stride); });
}

// Whether nothing but sums of the segment belongs into the group's columns: a zero added where it changes nothing could still
// turn a negative zero.
bool AdapterRunner::has_every_module(const Segment& segment) const {
    const auto first = parts_.begin() + (&segment - segments_.data()) * modules_;
    return std::all_of(first, first + modules_, [](const Part& part) { return part.rank > 0; });
}

// Tiles of about the same work; one that is made at once is a tile of its own.
void AdapterRunner::cut_tiles() {
    tiles_.assign(1, 0);
    std::size_t work = 0;
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
        const Piece& piece = pieces_[i];
        const Segment& segment = segments_[unsign(piece.segment)];
        work += unsign(piece.ranks) * unsign(piece.inputs) * 2 * unsign((segment.count + 3) / 4);
        const bool last = i + 1 == pieces_.size(), border = last || pieces_[i + 1].segment != piece.segment;
        const bool next_alone = !last && segments_[unsign(pieces_[i + 1].segment)].alone;
        const bool full = work >= kTileWork && !segment.alone;
        if (!full && !last && !(border && (segment.alone || next_alone))) continue;
        tiles_.push_back(static_cast<int>(i) + 1);
        work = 0;
    }
}

void AdapterRunner::shrink_tile(const KernelTable& table, int tile, const float* x, std::size_t x_stride) {
    const int end = tiles_[unsign(tile) + 1];
    for (int i = tiles_[unsign(tile)]; i < end; ++i) {
        const Piece& piece = pieces_[unsign(i)];
        const Segment& segment = segments_[unsign(piece.segment)];
        const Part& part = parts_[unsign(piece.part)];
        const bool done = i + 1 == end || pieces_[unsign(i) + 1].part != piece.part;
        const std::uint16_t* ahead = i + 1 < end ? pieces_[unsign(i) + 1].a : nullptr;
        int adjacent = 0;
        if (segment.alone && done) ahead = this->piece(segment.adapter, part.b, 0, &adjacent);
        table.adapters.shrink({x, x_stride, rows_.data() + segment.first, factors_.data() + segment.first, part.scale, segment.count,
                               piece.a, piece.ranks, piece.inputs, v_.data() + segment.v + unsign(part.column + piece.rank),
                               unsign(segment.width), ahead});
        if (segment.alone && done) expand_alone(table, piece.segment, piece.part - piece.segment * modules_);
    }
}

// The second product of one module for a segment that is alone, in the order of the base product's columns.
void AdapterRunner::expand_alone(const KernelTable& table, int number, int module) {
    const Segment& segment = segments_[unsign(number)];
    const Part& part = parts_[unsign(number * modules_ + module)];
    const AdapterSides& sides = (*sides_)[unsign(layer_)];
    const bool pairs = first_module_ == kModuleGate;  // the one product whose sources alternate
    int start = pairs ? module : 0;
    for (int before = 0; before < module && !pairs; ++before) start += sides.panels[first_module_ + before];
    AdapterExpand task{};
    task.ranks = part.rank;
    task.v = v_.data() + segment.v + part.column;
    task.v_stride = unsign(segment.width);
    task.rows = numbers_.data() + segment.first;
    task.first_row = segment.first;
    task.count = segment.count;
    task.out_stride = unsign(panels_) * kPanelWidth;
    task.panel_step = pairs ? 2 : 1;
    task.fresh = true;
    const int count = sides.panels[first_module_ + module];
    for (int panel = 0; panel < count; panel += task.panels) {
        int adjacent = 0;
        task.b = piece(segment.adapter, part.b, panel, &adjacent);
        task.panels = std::min(count - panel, adjacent);
        task.ahead = task.b + kStretchAhead;
        task.out = sums_.data() + segment.sums + unsign(start + panel * task.panel_step) * kPanelWidth;
        table.adapters.expand(task);
    }
}

// Segment after segment, take(task) for every stretch of panels without a page border (`out` counts from the tile's start), or
// alone(segment) for one whose sums are there.
template <class Take, class Alone>
void AdapterRunner::each_task(const PackedMatrix& matrix, int m0, int panel0, int panel1, Take&& take, Alone&& alone) const {
    const std::size_t stripe = unsign(m0) / kStripeRows;
    AdapterExpand task{};
    task.first_row = m0;
    task.panel_step = matrix.interleaved() ? 2 : 1;
    for (int i = stripe_segments_[stripe]; i < stripe_segments_[stripe + 1]; ++i) {
        const Segment& segment = segments_[unsign(i)];
        if (segment.alone) {
            alone(segment);
            continue;
        }
        task.rows = rows_.data() + segment.first;
        task.count = segment.count;
        task.v_stride = unsign(segment.width);
        for (int source = 0; source < modules_; ++source) {
            const Part& part = parts_[unsign(i * modules_ + source)];
            if (part.rank == 0) continue;
            task.ranks = part.rank;
            task.v = v_.data() + segment.v + part.column;
            // Panels of this source in the tile, counted in the source; sources alternate or follow each other.
            const int start = matrix.interleaved() ? 0 : matrix.column_starts()[unsign(source)] / kPanelWidth;
            const int count = (*sides_)[unsign(layer_)].panels[first_module_ + source];
            const int from = matrix.interleaved() ? panel0 / 2 : std::max(panel0 - start, 0);
            const int to = matrix.interleaved() ? panel1 / 2 : std::min(panel1 - start, count);
            for (int panel = from; panel < to; panel += task.panels) {
                int adjacent = 0;
                task.b = piece(segment.adapter, part.b, panel, &adjacent);
                task.panels = std::min(to - panel, adjacent);
                const int column = matrix.interleaved() ? 2 * panel + source - panel0 : start + panel - panel0;
                if (!take(task, static_cast<std::ptrdiff_t>(column) * kPanelWidth)) return;
            }
        }
    }
}

void AdapterRunner::fetch(const PackedMatrix& matrix, int m0, int panel0, int panel1) const {
    int left = kAhead;
    each_task(matrix, m0, panel0, panel1, [&](const AdapterExpand& task, std::ptrdiff_t) {
        const std::size_t values = unsign(task.panels) * unsign(task.ranks) * kPanelWidth;
        for (std::size_t i = 0; i < std::min(values, kMostFetched); i += 32) __builtin_prefetch(task.b + i, 0, 2);
        return --left > 0;
    }, [](const Segment&) {});
}

// Tasks run some steps behind the one whose numbers are being fetched.
void AdapterRunner::expand(const KernelTable& table, const PackedMatrix& matrix, int m0, int panel0, int panel1, float* out,
                           std::size_t out_stride) const {
    AdapterExpand waiting[kAhead];
    int first = 0, count = 0;
    const auto run_first = [&](const std::uint16_t* ahead) {
        waiting[first].ahead = ahead;
        table.adapters.expand(waiting[first]);
        first = (first + 1) % kAhead;
        --count;
    };
    each_task(matrix, m0, panel0, panel1, [&](const AdapterExpand& task, std::ptrdiff_t column) {
        if (count == kAhead) run_first(task.b);
        AdapterExpand& last = waiting[(first + count) % kAhead];
        last = task;
        last.out = out + column;
        last.out_stride = out_stride;
        ++count;
        return true;
    }, [&](const Segment& segment) {
        while (count > 0) run_first(nullptr);  // a row's adapters are added in the order of its list
        const std::size_t columns = unsign(panels_) * kPanelWidth, begin = unsign(panel0) * kPanelWidth;
        const int width = (std::min(panel1, panels_) - panel0) * kPanelWidth;
        const float* sums = sums_.data() + segment.sums + begin;
        for (int i = 0; i < segment.count; ++i, sums += columns)
            table.rows.add(sums, width, out + unsign(rows_[unsign(segment.first + i)] - m0) * out_stride);
    });
    while (count > 0) run_first(nullptr);
}

}  // namespace headrace
