// How keys and values rest in a page: formats, sizes and places. Plain data only, included by translation units of every ISA.
//
//   page = [layer 0: [head 0][head 1] …] [layer 1: …] …            one KV head of one layer, 16 tokens:
//
//   bf16   [K: head_dim × 16 tokens] [V: 16 tokens × head_dim]
//   coded  [K codes] [V codes] [K steps: 16] [K middles: 16] [V steps: 16] [V middles: 16]      steps and middles are bf16
//
// A coded vector (one token, one head) has its own step and middle: value = step · (code − half) + middle, code 0 … 2·half − 1
// (QServe's KV4: asymmetric and dynamic per token and head, its parameters inside the page). Codes stand in lines of 64 bytes,
// 16 lanes × 4 bytes, as operands of products of unsigned bytes: K line g holds dimensions 4g … 4g+3 of 16 tokens, V line
// (j, v) tokens 4j … 4j+3 of dimensions 16v … 16v+15. With 4 bits two lines share 64 bytes: the even one in the low nibbles,
// the odd one in the high ones. Both belong to the same tokens, so tokens can be written by several threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace {

inline constexpr int kPageTokens = 16;  // positions of one KV page

enum class KvFormat : std::uint8_t { bf16, kv8, kv4 };

constexpr int kv_bits(KvFormat format) { return format == KvFormat::bf16 ? 16 : format == KvFormat::kv8 ? 8 : 4; }

// Of the keys, or of the values, of one head in one page.
constexpr std::size_t kv_code_bytes(KvFormat format, int head_dim) {
    return static_cast<std::size_t>(kPageTokens) * static_cast<std::size_t>(head_dim) * static_cast<std::size_t>(kv_bits(format)) / 8;
}

inline constexpr std::size_t kKvParameterBytes = 4 * kPageTokens * sizeof(std::uint16_t);

// One head of one layer in one page.
constexpr std::size_t kv_head_bytes(KvFormat format, int head_dim) {
    return 2 * kv_code_bytes(format, head_dim) + (format == KvFormat::bf16 ? 0 : kKvParameterBytes);
}

}  // namespace headrace
