// A row of texts as GGUF files hold them: a length in 8 bytes (little-endian), then UTF-8.
#pragma once

#include <cstdint>

namespace kvant {

struct TextWalk {
  int64_t count;  // texts passed
  int64_t end;    // where the next one begins
  bool valid;     // false: the text at `end` is not UTF-8
};

// Pass over at most `most` texts from data[start] on, and stop before one that is not wholly there
// or not UTF-8. Never looks at or beyond data[size], whatever the lengths say.
TextWalk walk_texts(const uint8_t* data, int64_t size, int64_t start, int64_t most);

}  // namespace kvant
