#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvant {
namespace {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Some ten microseconds; longer than the threads of a step are usually apart.
constexpr int kSpins = 1000;

}  // namespace

Pool::Pool(int threads) : size_(threads < 1 ? 1 : threads) {
  for (int t = 1; t < size_; ++t) threads_.emplace_back([this, t] { worker(t); });
}

Pool::~Pool() {
  stopping_ = true;
  started_.fetch_add(1, std::memory_order_release);
  started_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void Pool::wait_while(const std::atomic<uint32_t>& value, uint32_t seen) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != seen) return;
    relax();
  }
  while (value.load(std::memory_order_acquire) == seen)
    value.wait(seen, std::memory_order_acquire);
}

void Pool::run(const std::function<void(int)>& work) {
  if (size_ == 1) return work(0);
  work_ = &work;
  started_.fetch_add(1, std::memory_order_release);
  started_.notify_all();
  work(0);
  barrier();
}

void Pool::barrier() {
  if (size_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == uint32_t(size_)) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.fetch_add(1, std::memory_order_release);
    phase_.notify_all();
  } else {
    wait_while(phase_, phase);
  }
}

void Pool::worker(int thread) {
  uint32_t seen = 0;
  for (;;) {
    wait_while(started_, seen);
    ++seen;
    if (stopping_) return;
    (*work_)(thread);
    barrier();
  }
}

}  // namespace kvant
