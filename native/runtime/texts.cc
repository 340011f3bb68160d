#include "texts.h"

#include <cstring>

namespace kvant {
namespace {

// UTF-8 as Unicode defines it: no overlong forms, no surrogates, nothing above 10FFFF.
bool is_utf8(const uint8_t* p, const uint8_t* end) {
  while (p < end) {
    if (end - p >= 8) {
      uint64_t eight;
      std::memcpy(&eight, p, 8);
      if (!(eight & 0x8080808080808080u)) {
        p += 8;
        continue;
      }
    }
    const uint8_t lead = *p++;
    if (lead < 0x80) continue;
    const int more = lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
    if (lead < 0xc2 || lead > 0xf4 || end - p < more) return false;
    // The second byte alone tells the forbidden ranges.
    const uint8_t least = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const uint8_t most = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (*p < least || *p > most) return false;
    for (int i = 1; i < more; ++i)
      if ((p[i] & 0xc0) != 0x80) return false;
    p += more;
  }
  return true;
}

}  // namespace

TextWalk walk_texts(const uint8_t* data, int64_t size, int64_t start, int64_t most) {
  TextWalk walk = {0, start, true};
  while (walk.count < most && size - walk.end >= 8) {
    uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | data[walk.end + i];
    const int64_t text = walk.end + 8;
    if (length > uint64_t(size - text)) break;
    if (!is_utf8(data + text, data + text + length)) {
      walk.valid = false;
      break;
    }
    walk.end = text + int64_t(length);
    ++walk.count;
  }
  return walk;
}

}  // namespace kvant
