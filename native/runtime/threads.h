// A pool of threads that work in step: one function on all of them, barriers inside it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace kvant {

// The caller is thread 0; the others sleep between calls of `run`, so an idle pool costs nothing.
// While a function runs, a thread that waits for others spins for some ten microseconds and then
// sleeps too: where processors are shared, spinning longer only takes them from those one waits for.
class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return size_; }

  // Calls `work(thread)` on every thread and returns when all have returned. `work` must not throw.
  // Not to be called from two threads at once.
  void run(const std::function<void(int)>& work);

  // For use inside `work`, by all threads.
  void barrier();

 private:
  void worker(int thread);
  static void wait_while(const std::atomic<uint32_t>& value, uint32_t seen);

  const int size_;
  std::vector<std::thread> threads_;
  const std::function<void(int)>* work_ = nullptr;
  alignas(64) std::atomic<uint32_t> started_{0};
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  bool stopping_ = false;
};

// Shares out indices 0 .. count - 1, a few at a time. Reset by one thread before others use it.
class Tickets {
 public:
  void reset() { next_.store(0, std::memory_order_relaxed); }
  // The first of `step` indices that are now the caller's.
  int64_t take(int64_t step) { return next_.fetch_add(step, std::memory_order_relaxed); }

 private:
  alignas(64) std::atomic<int64_t> next_{0};
};

}  // namespace kvant
