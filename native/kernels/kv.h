// How keys and values lie in memory: blocks of 32 positions, found through a block table.
#pragma once

#include <cstdint>

namespace kvant {

inline constexpr int kKvBlock = 32;  // tokens in a block

enum class KvType : int { F16 = 0, Q8_0 = 1 };

// One layer's cache is an array of blocks; in a block the kv heads follow each other; a head's part
// is its K, then its V.
//   F16:  K half [head_dim][32 tokens], V half [32 tokens][head_dim].
//   Q8_0: K int8 [head_dim][32 tokens], half scales [ceil(head_dim / 32)][32 tokens];
//         V int8 [32 tokens][head_dim], half scales [32 tokens][ceil(head_dim / 32)].
// K lies with the tokens side by side, for a score is a sum over the head's elements: lanes hold
// tokens, and nothing is summed across lanes.
struct KvShape {
  int kv_heads;
  int head_dim;
  KvType type;
};

inline int64_t kv_scale_groups(const KvShape& s) { return (int64_t(s.head_dim) + 31) / 32; }

// Bytes of the K (and as many of the V) of one head in one block.
inline int64_t kv_half_bytes(const KvShape& s) {
  if (s.type == KvType::F16) return int64_t(s.head_dim) * kKvBlock * 2;
  return int64_t(s.head_dim) * kKvBlock + kv_scale_groups(s) * kKvBlock * 2;
}

// Bytes of one head in one block, rounded up to 64.
inline int64_t kv_head_bytes(const KvShape& s) { return (2 * kv_half_bytes(s) + 63) / 64 * 64; }

inline int64_t kv_block_bytes(const KvShape& s) { return s.kv_heads * kv_head_bytes(s); }

}  // namespace kvant
