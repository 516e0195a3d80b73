#include "pack.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "gguf_blocks.hpp"
#include "pack_integer.hpp"

namespace headrace {
namespace {

using DecodeGroup = bool (*)(const std::uint8_t* row, int group, GroupCodes& out);

struct Decoder {
    SourceKind kind;
    DecodeGroup decode;  // null for float sources and integer rows
};

const Decoder kDecoders[] = {
    {{"F32", 1, 4, Format::f32}, nullptr},
    {{"F16", 1, 2, Format::f16}, nullptr},
    {{"BF16", 1, 2, Format::bf16}, nullptr},
    {{"Q8_0", 32, 34, Format::w8}, decode_q8_0},
    {{"Q4_0", 32, 18, Format::w4}, decode_q4_0},
    {{"Q4_1", 32, 20, Format::w4}, decode_q4_1},
    {{"Q5_0", 32, 22, Format::w8}, decode_q5_0},
    {{"Q5_1", 32, 24, Format::w8m}, decode_q5_1},
    {{"Q4_K", 256, 144, Format::w4}, decode_q4_k},
    {{"Q6_K", 256, 210, Format::w8g16}, decode_q6_k},
    {{"Q8_0A8", 32, 34, Format::w8a8}, decode_q8_0},
    {{"Q4_0A8", 32, 18, Format::w4a8}, decode_q4_0},
    {{"Q4_1A8", 32, 20, Format::w4a8}, decode_q4_1},
    {{"Q5_0A8", 32, 22, Format::w8a8}, decode_q5_0},
    {{"Q5_1A8", 32, 24, Format::w8ma8}, decode_q5_1},
    {{"Q4_KA8", 256, 144, Format::w4a8}, decode_q4_k},
    {{"Q6_KA8", 256, 210, Format::w8g16a8}, decode_q6_k},
    {{"INT8A8", 32, 32, Format::q8a8}, nullptr},
    {{"INT8A16", 32, 32, Format::q8a16}, nullptr},
    {{"INT4G32A8", 32, 19, Format::q4g32a8}, nullptr},
    {{"INT4G64A8", 32, 35, Format::q4g64a8}, nullptr},
    {{"INT4G128A8", 32, 67, Format::q4g128a8}, nullptr},
    {{"INT4G32A16", 32, 19, Format::q4g32a16}, nullptr},
    {{"INT4G64A16", 32, 35, Format::q4g64a16}, nullptr},
    {{"INT4G128A16", 32, 67, Format::q4g128a16}, nullptr},
};

const FormatTraits& traits_of(Format format) { return kFormatTraits[static_cast<int>(format)]; }

const Decoder& decoder_for(const std::string& kind) {
    for (const Decoder& decoder : kDecoders)
        if (kind == decoder.kind.name) return decoder;
    throw PackError("weights of kind " + kind + " have no kernel");
}

std::size_t row_bytes(const Decoder& decoder, int inputs) {
    if (traits_of(decoder.kind.format).integer) return integer_row_bytes(decoder.kind.format, inputs);
    return static_cast<std::size_t>(inputs / decoder.kind.block) * decoder.kind.block_bytes;
}

void check_shape(const PackSource& source, int inputs) {
    const Decoder& decoder = decoder_for(source.kind);
    const std::string shape = std::to_string(source.rows) + " x " + std::to_string(source.inputs);
    if (source.rows < 1 || source.inputs < 1) throw PackError("a " + source.kind + " matrix of shape " + shape + " is empty");
    if (source.inputs != inputs)
        throw PackError("stacked matrices differ in inputs: " + std::to_string(inputs) + " and " + std::to_string(source.inputs));
    if (source.inputs % decoder.kind.block != 0)
        throw PackError(source.kind + " needs inputs in multiples of " + std::to_string(decoder.kind.block) + ", the shape is " + shape);
}

void check_bytes(const PackSource& source) {
    const Decoder& decoder = decoder_for(source.kind);
    const std::size_t expected = row_bytes(decoder, source.inputs) * static_cast<std::size_t>(source.rows);
    if (source.length != expected)
        throw PackError("a " + source.kind + " matrix of shape " + std::to_string(source.rows) + " x " + std::to_string(source.inputs) +
                        " takes " + std::to_string(expected) + " bytes, the file has " + std::to_string(source.length));
    if (source.order == nullptr) return;
    for (int row = 0; row < source.rows; ++row)
        if (source.order[row] < 0 || source.order[row] >= source.rows)
            throw PackError("row order " + std::to_string(source.order[row]) + " is outside a matrix of " + std::to_string(source.rows) + " rows");
}

// Scatters the codes of one channel into a record; see the drawing in formats.hpp.
template <Format format>
void place_codes(const GroupCodes& codes, int lane, std::uint8_t* record) {
    constexpr FormatTraits traits = kFormatTraits[static_cast<int>(format)];
    if constexpr (traits.bits == 4) {
        std::uint8_t both[16];
        for (int i = 0; i < 16; ++i) both[i] = static_cast<std::uint8_t>(codes.q[i] | codes.q[i + 16] << 4);
        for (int line = 0; line < 4; ++line) std::memcpy(record + 64 * line + 4 * lane, both + 4 * line, 4);
    } else {
        for (int line = 0; line < traits.group / 4; ++line) std::memcpy(record + 64 * line + 4 * lane, codes.q + 4 * line, 4);
    }
    std::uint8_t* scales = record + traits.record_bytes - (traits.has_min ? 64 : 32);
    std::memcpy(scales + 2 * lane, &codes.d, 2);
    if constexpr (traits.has_min) std::memcpy(scales + 32 + 2 * lane, &codes.m, 2);
}

// rows[lane] is null for padding channels, which get scale 0 and so the value 0.
template <Format format>
bool pack_quantised(const Decoder& decoder, const std::uint8_t* const* rows, int groups, std::uint8_t* panel) {
    constexpr int record_bytes = kFormatTraits[static_cast<int>(format)].record_bytes;
    bool finite = true;
    for (int group = 0; group < groups; ++group, panel += record_bytes) {
        for (int lane = 0; lane < kPanelWidth; ++lane) {
            GroupCodes codes{};
            if (rows[lane] != nullptr) finite &= decoder.decode(rows[lane], group, codes);
            place_codes<format>(codes, lane, panel);
        }
    }
    return finite;
}

template <class Word>
bool pack_values(const std::uint8_t* const* rows, int inputs, Word exponent, std::uint8_t* panel) {
    bool finite = true;
    for (int lane = 0; lane < kPanelWidth; ++lane) {
        for (int k = 0; k < inputs; ++k) {
            Word word = 0;
            if (rows[lane] != nullptr) std::memcpy(&word, rows[lane] + sizeof(Word) * static_cast<std::size_t>(k), sizeof(Word));
            finite &= (word & exponent) != exponent;
            std::memcpy(panel + sizeof(Word) * (static_cast<std::size_t>(k) * kPanelWidth + lane), &word, sizeof(Word));
        }
    }
    return finite;
}

bool pack_finite_panel(const Decoder& decoder, const std::uint8_t* const* rows, int inputs, std::uint8_t* panel) {
    switch (decoder.kind.format) {
        case Format::w4a8:
        case Format::w4: return pack_quantised<Format::w4>(decoder, rows, inputs / 32, panel);
        case Format::w8a8:
        case Format::w8: return pack_quantised<Format::w8>(decoder, rows, inputs / 32, panel);
        case Format::w8ma8:
        case Format::w8m: return pack_quantised<Format::w8m>(decoder, rows, inputs / 32, panel);
        case Format::w8g16a8:
        case Format::w8g16: return pack_quantised<Format::w8g16>(decoder, rows, inputs / 16, panel);
        case Format::bf16: return pack_values<std::uint16_t>(rows, inputs, 0x7f80, panel);
        case Format::f16: return pack_values<std::uint16_t>(rows, inputs, 0x7c00, panel);
        default: return pack_values<std::uint32_t>(rows, inputs, 0x7f800000u, panel);
    }
}

PackFault pack_panel(const Decoder& decoder, const std::uint8_t* const* rows, int inputs, std::uint8_t* panel) {
    if (traits_of(decoder.kind.format).integer) return pack_integer_panel(decoder.kind.format, rows, inputs, panel);
    return pack_finite_panel(decoder, rows, inputs, panel) ? PackFault::none : PackFault::not_finite;
}

struct PanelSource {
    const PackSource* source;
    int first_row;
};

constexpr std::size_t kHugePage = 2u << 20;
constexpr std::uintptr_t kAlignment = 64;

}  // namespace

const std::vector<SourceKind>& source_kinds() {
    static const std::vector<SourceKind> kinds = [] {
        std::vector<SourceKind> all;
        for (const Decoder& decoder : kDecoders) all.push_back(decoder.kind);
        return all;
    }();
    return kinds;
}

std::size_t source_bytes(const std::string& kind, int rows, int inputs) {
    check_shape({nullptr, 0, kind, rows, inputs, nullptr}, inputs);
    return row_bytes(decoder_for(kind), inputs) * static_cast<std::size_t>(rows);
}

void PackedMatrix::Unmap::operator()(std::uint8_t* data) const {
    if (length > 0) munmap(data, length);
}

class Packer {
  public:
    Packer(const std::vector<PackSource>& sources, bool interleave) : sources_(sources), interleave_(interleave) {
        if (sources.empty()) throw PackError("a packed matrix needs at least one source");
        for (const PackSource& source : sources) check_shape(source, sources.front().inputs);
        if (interleave && (sources.size() != 2 || sources[0].rows != sources[1].rows))
            throw PackError("only two matrices of equal height can be interleaved");
    }

    std::unique_ptr<PackedMatrix> pack(ThreadPool& pool) {
        for (const PackSource& source : sources_) check_bytes(source);
        auto matrix = lay_out();
        allocate(*matrix);
        std::atomic<PackFault> fault{PackFault::none};
        pool.parallel_for(matrix->panel_count(), [&](int panel, int) {
            const PackFault found = fill(*matrix, panel);
            if (found != PackFault::none) fault.store(found, std::memory_order_relaxed);
        });
        if (fault.load() == PackFault::not_finite) throw PackError("a weight or scale is infinite or not a number");
        if (fault.load() == PackFault::too_large) throw PackError("a channel's integer weights are so large that its sums could leave 32 bits");
        return matrix;
    }

    // The layout follows from the sources' kinds and shapes alone, so nothing of it is read from the panels' own file.
    std::unique_ptr<PackedMatrix> borrow(const std::uint8_t* panels, std::size_t length) {
        auto matrix = lay_out();
        if (length != matrix->bytes_)
            throw PackError("the panels take " + std::to_string(matrix->bytes_) + " bytes, " + std::to_string(length) + " are there");
        if (reinterpret_cast<std::uintptr_t>(panels) % kAlignment != 0) throw PackError("panels must be aligned to 64 bytes");
        matrix->data_ = {const_cast<std::uint8_t*>(panels), PackedMatrix::Unmap{0}};
        return matrix;
    }

  private:
    std::unique_ptr<PackedMatrix> lay_out() {
        auto matrix = std::make_unique<PackedMatrix>();
        matrix->inputs_ = sources_.front().inputs;
        matrix->interleaved_ = interleave_;
        lay_out(*matrix);
        return matrix;
    }

    void lay_out(PackedMatrix& matrix) {
        for (std::size_t s = 0; s < sources_.size(); ++s) {
            matrix.source_rows_.push_back(sources_[s].rows);
            matrix.column_starts_.push_back(static_cast<int>(interleave_ ? s : order_.size()) * kPanelWidth);
            if (interleave_) continue;
            for (int row = 0; row < sources_[s].rows; row += kPanelWidth) order_.push_back({&sources_[s], row});
        }
        if (interleave_)
            for (int row = 0; row < sources_[0].rows; row += kPanelWidth)
                for (const PackSource& source : sources_) order_.push_back({&source, row});
        for (const PanelSource& panel : order_) {
            const Format format = decoder_for(panel.source->kind).kind.format;
            const FormatTraits& traits = traits_of(format);
            matrix.panels_.push_back({matrix.bytes_, format});
            matrix.bytes_ += traits.integer ? integer_panel(format, matrix.inputs_).bytes
                                            : static_cast<std::size_t>(matrix.inputs_ / traits.group) * traits.record_bytes;
            matrix.integer_ &= traits.integer;
            if (traits.activation_bits == 8) (traits.integer ? matrix.needs_bytes_ : matrix.needs_groups_) = true;
            else (traits.quantised ? matrix.needs_planes_ : matrix.needs_values_) = true;
            matrix.needs_plane_sums_ |= traits.integer && traits.activation_bits == 16;
        }
    }

    // Huge pages where the system has them: a decode step walks the whole matrix once, 4 KiB pages cost a TLB miss each.
    static void allocate(PackedMatrix& matrix) {
        const std::size_t length = (matrix.bytes_ + 4095) / 4096 * 4096;
        void* data = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data == MAP_FAILED) throw std::bad_alloc();
        if (length >= kHugePage) madvise(data, length, MADV_HUGEPAGE);  // advice: refusing it costs speed only
        matrix.data_ = {static_cast<std::uint8_t*>(data), PackedMatrix::Unmap{length}};
    }

    PackFault fill(PackedMatrix& matrix, int panel) const {
        const PackSource& source = *order_[static_cast<std::size_t>(panel)].source;
        const int first = order_[static_cast<std::size_t>(panel)].first_row;
        const Decoder& decoder = decoder_for(source.kind);
        const std::size_t stride = row_bytes(decoder, source.inputs);
        const std::uint8_t* rows[kPanelWidth] = {};
        for (int lane = 0; lane < std::min(kPanelWidth, source.rows - first); ++lane) {
            const int row = source.order != nullptr ? source.order[first + lane] : first + lane;
            rows[lane] = source.data + stride * static_cast<std::size_t>(row);
        }
        return pack_panel(decoder, rows, source.inputs, matrix.data_.get() + matrix.panels_[static_cast<std::size_t>(panel)].offset);
    }

    const std::vector<PackSource>& sources_;
    bool interleave_;
    std::vector<PanelSource> order_;
};

std::unique_ptr<PackedMatrix> pack_matrix(ThreadPool& pool, const std::vector<PackSource>& sources, bool interleave) {
    return Packer(sources, interleave).pack(pool);
}

std::unique_ptr<PackedMatrix> borrow_matrix(const std::vector<PackSource>& sources, bool interleave, const std::uint8_t* panels,
                                            std::size_t length) {
    return Packer(sources, interleave).borrow(panels, length);
}

}  // namespace headrace
