#include "adapter.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <tuple>

namespace headrace {
namespace {

constexpr int kUnitBytes = 32;           // sixteen values: every row and panel is a multiple, and begins at one
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

AdapterRunner::Place AdapterRunner::place(int adapter, int module) const {
    const AdapterView& view = adapters_->adapters[unsign(adapter)];
    const std::size_t row = unsign(layer_) * kAdapterModules + unsign(module);
    const std::int32_t* fields = view.places.data + row * kPlaceFields;
    return {fields[0], fields[1], fields[2], fields[3], fields[4], view.scales[row]};
}

// Piece `index` of a run, and how many pieces from it on lie beside each other.
const std::uint16_t* AdapterRunner::piece(int adapter, std::int32_t page, std::int32_t offset, std::size_t bytes, int index,
                                          int* adjacent) const {
    const auto fit = static_cast<int>((pool_.page_bytes - unsign(offset)) / bytes);
    int slot = index;
    if (index >= fit) {
        const auto each = static_cast<int>(pool_.page_bytes / bytes);
        page += 1 + (index - fit) / each;
        slot = (index - fit) % each;
        offset = 0;
        *adjacent = each - slot;
    } else {
        *adjacent = fit - slot;
    }
    const std::int32_t id = adapters_->adapters[unsign(adapter)].pages[unsign(page)];
    return reinterpret_cast<const std::uint16_t*>(pool_.data + unsign(id) * pool_.page_bytes + unsign(offset) + unsign(slot) * bytes);
}

void AdapterRunner::cut(const Segment& segment, int number) {
    const int most = segment.count > 8 ? 4 : 8;  // ranks of a piece: their rows of A stay in the innermost cache
    std::size_t column = 0;
    for (int module = first_module_; module < first_module_ + modules_; ++module) {
        const Place own = place(segment.adapter, module);
        const std::size_t bytes = unsign((*sides_)[unsign(layer_)].inputs[module]) * 2;
        for (int rank = 0, ranks = 0; rank < own.rank; rank += ranks) {
            int adjacent = 0;
            const std::uint16_t* a = piece(segment.adapter, own.a_page, own.a_offset, bytes, rank, &adjacent);
            ranks = std::min({own.rank - rank, adjacent, most});
            pieces_.push_back({number, module, rank, ranks, a, column + unsign(rank)});
        }
        column += unsign(own.rank);
    }
}

void AdapterRunner::shrink(const KernelTable& table, ThreadPool& threads, int layer, AdapterModule first, int count, const float* x,
                           std::size_t x_stride) {
    active_ = false;
    if (segments_.empty()) return;
    layer_ = layer;
    first_module_ = first;
    modules_ = count;
    pieces_.clear();
    tiles_.assign(1, 0);
    std::size_t total = 0, work = 0;
    for (std::size_t i = 0; i < segments_.size(); ++i) {
        Segment& segment = segments_[i];
        segment.width = 0;
        for (int module = first; module < first + count; ++module) segment.width += place(segment.adapter, module).rank;
        segment.v = total;
        total += unsign(segment.width) * unsign(segment.count);
        std::size_t done = pieces_.size();
        cut(segment, static_cast<int>(i));
        for (; done < pieces_.size(); ++done) {
            const Piece& piece = pieces_[done];
            work += unsign(piece.ranks) * unsign((*sides_)[unsign(layer)].inputs[piece.module]) * 2 * unsign((segment.count + 3) / 4);
            if (work < kTileWork) continue;
            tiles_.push_back(static_cast<int>(done) + 1);
            work = 0;
        }
    }
    if (pieces_.empty()) return;
    if (tiles_.back() != static_cast<int>(pieces_.size())) tiles_.push_back(static_cast<int>(pieces_.size()));
    active_ = true;
    float* v = v_.reserve(total);
    threads.parallel_for(static_cast<int>(tiles_.size()) - 1, [&](int tile, int) {
        for (int i = tiles_[unsign(tile)]; i < tiles_[unsign(tile) + 1]; ++i) {
            const Piece& piece = pieces_[unsign(i)];
            const Segment& segment = segments_[unsign(piece.segment)];
            table.adapters.shrink({x, x_stride, rows_.data() + segment.first, factors_.data() + segment.first,
                                   place(segment.adapter, piece.module).scale, segment.count, piece.a, piece.ranks,
                                   (*sides_)[unsign(layer)].inputs[piece.module], v + segment.v + piece.column, unsign(segment.width),
                                   i + 1 < tiles_[unsign(tile) + 1] ? pieces_[unsign(i) + 1].a : nullptr});
        }
    });
}

// Runs tasks one late, so that each knows what comes after it.
class AdapterRunner::Queue {
  public:
    explicit Queue(const KernelTable& table) : run_(table.adapters.expand) {}
    void push(const AdapterExpand& task) {
        waiting_.ahead = task.b;
        if (waiting_.count) run_(waiting_);
        waiting_ = task;
    }
    void finish() {
        if (waiting_.count) run_(waiting_);
    }

  private:
    void (*run_)(const AdapterExpand&);
    AdapterExpand waiting_{};
};

void AdapterRunner::expand_module(Queue& queue, const Segment& segment, int module, std::size_t column, AdapterExpand task, int panel0,
                                  int panel1) const {
    const Place own = place(segment.adapter, module);
    if (own.rank == 0) return;
    task.ranks = own.rank;
    task.v = v_.data() + segment.v + column;
    task.v_stride = unsign(segment.width);
    task.rows = rows_.data() + segment.first;
    task.count = segment.count;
    for (int panel = panel0; panel < panel1; panel += task.panels) {
        int adjacent = 0;
        task.b = piece(segment.adapter, own.b_page, own.b_offset, unsign(own.rank) * kUnitBytes, panel, &adjacent);
        task.panels = std::min(panel1 - panel, adjacent);
        queue.push(task);
        task.out += unsign(task.panels) * unsign(task.panel_step) * kPanelWidth;
    }
}

void AdapterRunner::expand(const KernelTable& table, const PackedMatrix& matrix, int m0, int panel0, int panel1, float* out,
                           std::size_t out_stride) const {
    const std::size_t stripe = unsign(m0) / kStripeRows;
    AdapterExpand task{};
    task.first_row = m0;
    task.out_stride = out_stride;
    task.panel_step = matrix.interleaved() ? 2 : 1;
    Queue queue(table);
    for (int i = stripe_segments_[stripe]; i < stripe_segments_[stripe + 1]; ++i) {
        const Segment& segment = segments_[unsign(i)];
        if (segment.width == 0) continue;
        std::size_t column = 0;
        for (int source = 0; source < modules_; ++source) {
            const int module = first_module_ + source, panels = (*sides_)[unsign(layer_)].panels[module];
            if (matrix.interleaved()) {
                task.out = out + source * kPanelWidth;
                expand_module(queue, segment, module, column, task, panel0 / 2, panel1 / 2);
            } else {
                const int start = matrix.column_starts()[unsign(source)] / kPanelWidth;
                const int from = std::max(panel0, start), to = std::min(panel1, start + panels);
                task.out = out + static_cast<std::ptrdiff_t>(from - panel0) * kPanelWidth;
                if (from < to) expand_module(queue, segment, module, column, task, from - start, to - start);
            }
            column += unsign(place(segment.adapter, module).rank);
        }
    }
    queue.finish();
}

}  // namespace headrace
