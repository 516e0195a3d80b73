// Low-rank adapters of a step: rows grouped by the adapter they use, so that one pass over its numbers serves them all.
//
// As in Punica ("Multi-Tenant LoRA Serving", SGMV) rows of one adapter form a segment, and as in S-LoRA ranks are mixed
// without padding; unlike both the second product is added inside the tile of the base product, while that is still in cache.
// Where many adapters serve few rows each, reading them is what costs: then both products of a segment follow each other,
// A and B being read as one long stretch, and a tile only adds its part of what came out. The bits are the same either way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "batch.hpp"
#include "buffer.hpp"
#include "kernel_table.hpp"
#include "packed_matrix.hpp"
#include "threads.hpp"

namespace headrace {

inline constexpr int kStripeRows = 64;  // segments end at its multiples, where tiles of base products end too
inline constexpr int kMaxAdapterRank = 4096;

// Inputs and panels of outputs of each module of a layer, in the order of AdapterModule. 0 inputs: the layer has none.
struct AdapterSides {
    int inputs[kAdapterModules] = {};
    int panels[kAdapterModules] = {};
};

// Throws std::invalid_argument naming the array at fault. `written`: pages that the step writes keys and values into.
void check_adapters(const BatchView& batch, const PoolView& pool, const std::vector<AdapterSides>& sides,
                    const std::vector<bool>& written);

class AdapterRunner {
  public:
    // The step's rows; its arrays and pages must stay where they are until the next call. Cheap when it has no adapters.
    void begin(const BatchView& batch, const PoolView& pool, const std::vector<AdapterSides>& sides);
    // From here on rows are the step's output rows.
    void gather(const BatchView& batch);

    // The first product of modules first … first+count-1 of a layer with rows of x; `expand` adds the second one.
    void shrink(const KernelTable& table, ThreadPool& threads, int layer, AdapterModule first, int count, const float* x,
                std::size_t x_stride);

    // Whether the modules of the last `shrink` are changed for any row.
    bool active() const { return active_; }

    // Asks memory for the first of what `expand` will read for these tiles.
    void fetch(const PackedMatrix& matrix, int m0, int panel0, int panel1) const;

    // Adds what adapters give to rows m0 … m1-1 and panels panel0 … panel1-1 of a product with `matrix`, whose sources are
    // the modules of the last `shrink`. `out` is row m0 of panel0. Rows of one tile lie in one stripe.
    void expand(const KernelTable& table, const PackedMatrix& matrix, int m0, int panel0, int panel1, float* out,
                std::size_t out_stride) const;

  private:
    // Entries first … first+count-1: rows of one stripe that use one adapter, each as the same one of its list.
    struct Segment {
        int adapter, first, count;
        int width = 0;  // ranks of the group's modules together
        std::size_t v = 0;
        bool alone = false;      // its second product is made at once, into `sums`: entries of all columns of the base product
        std::size_t sums = 0;
    };
    // Rows of A beside each other for all entries of a segment.
    struct Piece {
        int segment, part, rank, ranks, inputs;
        const std::uint16_t* a;
    };
    struct Entry {
        int stripe, turn, adapter, row;
        float factor;
    };
    // Pieces of one size that lie behind each other, from `offset` of the adapter's page `page` on.
    struct Run {
        std::int32_t page, offset;
        std::size_t bytes;  // of a piece
        int fit, each;      // pieces in the first page, in every other
    };
    // One module of a segment: its panels of B, and where its ranks begin among the segment's.
    struct Part {
        int rank, column;
        float scale;
        Run b;
    };

    void collect(const std::vector<int>& slices);
    Run run(std::int32_t page, std::int32_t offset, std::size_t bytes) const;
    const std::uint16_t* piece(int adapter, const Run& run, int index, int* adjacent) const;
    void prepare(Segment& segment, int number);
    void cut_tiles();
    bool has_every_module(const Segment& segment) const;
    void shrink_tile(const KernelTable& table, int tile, const float* x, std::size_t x_stride);
    void expand_alone(const KernelTable& table, int number, int module);
    template <class Take, class Alone>
    void each_task(const PackedMatrix& matrix, int m0, int panel0, int panel1, Take&& take, Alone&& alone) const;

    const AdaptersView* adapters_ = nullptr;
    const std::vector<AdapterSides>* sides_ = nullptr;
    PoolView pool_;
    int layer_ = 0, first_module_ = 0, modules_ = 0;
    int panels_ = 0;  // of those modules together
    bool active_ = false;

    std::vector<Entry> entries_;
    std::vector<int> rows_, row_slice_;
    std::vector<float> factors_;
    std::vector<Segment> segments_;
    std::vector<int> stripe_segments_;  // segments of stripe s: from [s] to [s + 1]
    std::vector<Part> parts_;  // of segment s: from [s · modules_] on
    std::vector<Piece> pieces_;
    std::vector<int> tiles_;            // pieces of tile t: from [t] to [t + 1]
    std::vector<int> numbers_;          // of entries: entry i is row i of `sums_`
    Buffer<float> v_, sums_;
};

}  // namespace headrace
