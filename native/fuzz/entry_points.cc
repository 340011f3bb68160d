// Fuzzing of the core where it gets a stranger's bytes: texts of a header, packed rows, logits.
// scripts/fuzz builds and runs it (libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer).
// Shapes are right, as Python has checked them; contents may be anything.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "runtime/cpu.h"
#include "runtime/rows.h"
#include "runtime/sampler.h"
#include "runtime/texts.h"

using namespace kvant;

namespace {

// The input, byte by byte; zeros behind its end. A copy of its own size, so that reading past the
// end of what a kernel was given is seen.
struct Input {
  const uint8_t* data;
  size_t size;
  uint8_t byte() { return size ? (--size, *data++) : 0; }
  std::unique_ptr<uint8_t[]> take(size_t n) {
    std::unique_ptr<uint8_t[]> out(new uint8_t[n]());
    const size_t have = n < size ? n : size;
    if (have) std::memcpy(out.get(), data, have);
    data += have;
    size -= have;
    return out;
  }
};

void choose_isa(Input& in) {
  static const auto isas = usable_isas();
  select_isa(isas[in.byte() % isas.size()]->name);
}

void texts(Input& in) {
  const int64_t size = int64_t(in.size);
  const auto data = in.take(in.size);
  const TextWalk all = walk_texts(data.get(), size, 0, 1 << 30);
  if (all.end < 0 || all.end > size) std::abort();
  const TextWalk one = walk_texts(data.get(), size, 0, 1);
  if (one.count > all.count || one.end > all.end) std::abort();
}

// Any packing to any other, and through its parts.
void rows(Input& in) {
  choose_isa(in);
  std::vector<int> types = {kF32, kF16, kBF16};
  for (const PackingKernels* const* p = current_isa().packings; *p; ++p) types.push_back((*p)->id);
  const int from = types[in.byte() % types.size()], to = types[in.byte() % types.size()];
  const BlockShape a = block_shape(from), b = block_shape(to);
  const int64_t columns = 256 * (1 + in.byte() % 2), n = 1 + in.byte() % 3;
  const bool weighted = in.byte() & 1;
  const auto source = in.take(size_t(n * columns / a.elements * a.bytes));
  std::unique_ptr<uint8_t[]> out(new uint8_t[size_t(n * columns / b.elements * b.bytes)]);
  std::vector<float> importance(static_cast<size_t>(columns), 1.0f);
  for (float& w : importance) w = float(in.byte());
  convert_rows(from, to, source.get(), out.get(), n, columns, weighted ? importance.data() : nullptr);
  const PackingKernels* kernels = nullptr;
  for (const PackingKernels* const* p = current_isa().packings; *p; ++p)
    if ((*p)->id == from) kernels = *p;
  if (!kernels) return;
  const int64_t blocks = n * columns / kernels->block;
  std::vector<uint8_t> codes(size_t(n * columns)), again(size_t(blocks * kernels->block_bytes));
  std::vector<Scales> scales(static_cast<size_t>(blocks));
  std::vector<float> y(size_t(n * columns));
  kernels->unlayout(source.get(), codes.data(), scales.data(), blocks);
  kernels->decode(codes.data(), scales.data(), y.data(), blocks);
  kernels->layout(codes.data(), scales.data(), again.data(), blocks);
}

void sampler(Input& in) {
  choose_isa(in);
  const int64_t vocab = 1 + in.byte() * 9;
  SamplerOptions options;
  options.temperature = float(in.byte()) / 64;
  options.top_k = in.byte();
  options.top_p = float(1 + in.byte()) / 256;
  options.min_p = float(in.byte()) / 256;
  options.repetition = float(1 + in.byte()) / 128;
  options.frequency = float(in.byte()) / 64 - 2;
  options.logprobs = in.byte() % 8 - 1;
  for (int i = in.byte() % 4; i > 0; --i)
    options.bias.push_back({int32_t(in.byte() % vocab), float(in.byte()) - 128});
  Sampler s(options, vocab);
  for (int i = 0; i < 3; ++i) {
    const auto bytes = in.take(size_t(vocab) * 4);
    std::vector<float> logits(static_cast<size_t>(vocab));
    std::memcpy(logits.data(), bytes.get(), size_t(vocab) * 4);
    const Draw d = s.sample(logits.data());
    if (d.fault == Fault::none && (d.token < 0 || d.token >= vocab)) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input in{data, size};
  switch (in.byte() % 4) {
    case 0: texts(in); break;
    case 1: sampler(in); break;
    default: rows(in); break;
  }
  return 0;
}
