// Attention with the instruction for pairs of bf16; everything else is as in avx512.
#include "attention_impl.hpp"
#include "kernel_table.hpp"

namespace headrace::avx512_bf16 {

void fill_attention(KernelTable& table) {
    table.rows.attend = attend_rows;
    table.rows.attend_span = attend_one_span;
    table.rows.merge_spans = merge_partial_spans;
}

}  // namespace headrace::avx512_bf16
