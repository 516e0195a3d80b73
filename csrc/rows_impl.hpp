// Fills the row-kernel entries of one ISA's table. Included by csrc/isa/<isa>/rows.cpp and nowhere else.
#pragma once

#include "attention_impl.hpp"
#include "kernel_table.hpp"
#include "rope_impl.hpp"

namespace headrace::HEADRACE_ISA {

void fill_rows(KernelTable& table) {
    RowKernels& rows = table.rows;
    rows.norm = [](const float* x, const float* gain, float eps, int n, float* out) { norm_row(x, gain, eps, n, out); };
    rows.quantise = [](const float* x, int n, const QuantisedRow& to) { quantise_row(x, n, to); };
    rows.quantise_bytes = [](const float* x, int n, const ByteRow& to) { quantise_bytes_row(x, n, to); };
    rows.quantise_groups = [](const float* x, int n, const GroupedRow& to) { quantise_groups_row(x, n, to); };
    rows.sum_planes = sum_plane_groups;
    rows.add = [](const float* x, int n, float* to) { add_row(x, n, to); };
    rows.scale = [](float factor, int n, float* x) { scale_row(factor, n, x); };
    rows.gate = [](ActivationKind kind, const float* pairs, int panels, float* out) { gate_row(kind, pairs, panels, out); };
    rows.finish_qkv = finish_qkv_row;
    rows.store_kv = store_kv_row;
    rows.attend = attend_rows;
    rows.attend_span = attend_one_span;
    rows.merge_spans = merge_partial_spans;
    rows.arg_max = arg_max_row;
    rows.map = [](int function, const float* x, int n, float* out) { map_row(function, x, n, out); };
}

}  // namespace headrace::HEADRACE_ISA
