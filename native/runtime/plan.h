// A model as the engine runs it: a list of operations over a ragged batch of tokens.
//
// Python lowers the graph to these operations once (kvant/engine/plan.py); a step then runs without
// the interpreter: every thread walks the same list, takes pieces of each operation by ticket, and
// waits where the next one needs the last one's results. What a token gets depends on nothing but
// its own sequence: not on its neighbours, on the chunking of a prompt, or on the number of threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../kernels/packing.h"
#include "threads.h"
#include "weight.h"

namespace kvant {

// Panels unpacked together: their bytes stay in the second-level cache beside a tile.
inline constexpr int64_t kUnpacked = 384 << 10;

// Tokens that go through a panel without unpacking it first: unpacking in registers for each of four
// tiles costs less than writing the codes out once.
inline constexpr int64_t kDirect = 4 * kTile;

inline int64_t cache_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// What is done to a row by itself: as an operation of its own, or to a linear's input before it is
// rounded into tiles. Names and numbers as in kvant/engine/plan.py.
enum class Map : int {
  Nothing = 0,
  RmsNorm = 1,    // vector: gains; number: eps; groups
  LayerNorm = 2,  // vector: gains; vector2: what is added, or -1; number: eps
  SwiGlu = 3,     // src2: what is gated
  GeGlu = 4,
  GeluTanh = 5,
  GeluErf = 6,
  Scale = 7,      // number: the factor
};
inline constexpr int kMaps = 8;

struct Output {
  int weight;
  int bias;  // a vector, or -1
  int dst;   // a buffer
  bool add;  // to what the buffer holds: the residual stream
};

struct Op {
  enum class Kind { Embed, Positions, Map, Rope, Add, Linear, Attention, Moe };
  Kind kind;
  int layer = -1;  // -1: before the layers; the number of layers: after them
  int src = -1, src2 = -1, dst = -1;
  // Map, and Linear after one.
  Map map = Map::Nothing;
  int vector = -1, vector2 = -1;
  float number = 0;
  int64_t groups = 1;
  // Rope.
  int table = -1;
  int64_t fixed = -1;  // Positions: not the token's, but always this row
  int64_t heads = 0, head_dim = 0;
  // Linear.
  int64_t columns = 0;
  std::vector<Output> outputs;
  float factor = 1, cap = 0;  // the head's: logits are multiplied, then bounded (0: not)
  // Attention: src, src2, value are q, k, v; heads and keys may be normalised and turned first.
  int value = -1, state = -1;
  int q_norm = -1, k_norm = -1, q_rope = -1, k_rope = -1;
  float q_eps = 0, k_eps = 0;
  float scale = 0, softcap = 0;
  int64_t window = 0;
  bool causal = true;
  // Moe: src is what the experts read, src2 the router's scores, dst gets the sum (or it is added).
  int gate = -1, up = -1, down = -1;  // stacks of matrices
  int64_t used = 0;
  bool normalise = false, add = false;
  size_t tickets = 0;  // the first of its own
};

// Some consecutive tokens of one sequence.
struct Entry {
  int64_t begin, count;  // in the batch
  int64_t first;         // position in the sequence
  const int32_t* table;  // blocks
};

struct StepResult {
  bool read_failed = false;   // a weight's file ended early
  int64_t bad_row = -1;       // logits that are not finite
};

class Plan {
 public:
  Plan(int threads, int64_t most_tokens);

  Pool& pool() { return pool_; }
  int64_t most_tokens() const { return most_tokens_; }

  int add_weight(std::shared_ptr<Weight> w);
  void set_weight(int id, std::shared_ptr<Weight> w);
  std::shared_ptr<Weight> weight(int id) const { return weights_.at(size_t(id)); }
  int add_vector(std::vector<float> v);
  void set_vector(int id, std::vector<float> v);
  int add_table(std::shared_ptr<FileRows> rows);
  int add_frequencies(std::vector<double> f, double magnitude);  // radians a position
  int add_buffer(int64_t width);
  // Some columns of a buffer as one of their own, to be read, or changed in place.
  int add_view(int buffer, int64_t start, int64_t width);
  int add_state(KvShape shape);
  int add(Op op);  // its index
  void set_head(Op op);  // a Linear whose one output goes to the caller

  // Sizes are known: takes memory. `stream` is the buffer that runs through the layers, `result` the
  // one that the head reads.
  void finish(int64_t kv_blocks, int stream, int result, int layers);

  int64_t kv_bytes() const { return kv_bytes_; }
  int64_t scratch_bytes() const;
  int64_t weight_bytes() const;
  static int64_t kv_bytes_per_block(const std::vector<KvShape>& shapes);

  struct Capture {
    int op;
    float* out;  // [tokens][columns]
  };
  // What a mixture of experts read, where it is wanted.
  struct Routing {
    int op;
    int32_t* experts;  // [tokens][used], the likeliest first
    float* outer;      // [tokens][columns of gate and up], or null
    float* inner;      // [tokens * used][columns of down], or null
  };
  struct Request {
    const int32_t* tokens = nullptr;
    int64_t count = 0;
    std::vector<Entry> entries;
    std::vector<int32_t> rows;     // of the batch, for which results are wanted
    int first_layer = -1;          // operations of these layers only; -1: with the embedding
    int last_layer = 1 << 30;
    const float* stream_in = nullptr;  // [tokens][width] where the embedding does not run
    float* stream_out = nullptr;
    float* result = nullptr;       // [rows][width]: what the head reads
    float* logits = nullptr;       // [rows][vocabulary]
    std::vector<Capture> captures;
    std::vector<Routing> routings;
  };
  StepResult run(const Request& r);
  // Copy whole blocks of the cache, of all layers: (from, to), one after the other.
  void copy_blocks(const std::vector<std::pair<int64_t, int64_t>>& pairs);
  // The head alone, on rows [n][width].
  StepResult head(const float* hidden, int64_t n, float* logits);

  int64_t buffer_width(int id) const { return buffers_[size_t(id)].width; }
  int64_t vocabulary() const;
  int64_t op_columns(int id) const { return ops_.at(size_t(id)).columns; }
  const Op& op(int id) const { return ops_.at(size_t(id)); }
  // Throw std::invalid_argument where a batch names blocks or tokens there are not.
  void check_blocks(const std::vector<Entry>& entries) const;
  void check_tokens(const int32_t* tokens, int64_t n) const;
  void check_positions(const std::vector<Entry>& entries) const;
  int stream() const { return stream_; }
  int result() const { return result_; }

 private:
  struct Buffer {
    int64_t width, stride;
    float* data = nullptr;
    int parent = -1;  // a view's
    int64_t start = 0;
  };
  struct Thread {
    std::unique_ptr<Pages> pages;
    uint8_t* unpacked;
    uint8_t* panel;
    float* rows;  // eight
    float* attention;
    float* spare;
  };
  struct Run;

  void operate(const Op& op, int index, Run& run, int thread);
  void linear(const Op& op, int index, Run& run, int thread, float* out, int64_t out_stride);
  void prepare(const Op& op, int index, Run& run, int thread, int64_t tokens);
  void multiply(const Op& op, Run& run, int thread, int64_t tokens, float* out, int64_t out_stride);
  // A range of a weight's panels times tiles of tokens.
  struct Product {
    const Weight* weight;
    const uint8_t* tiles;
    int64_t tile_bytes;
    int width;
    int64_t tokens;
    float* y;  // of the first token: rows from panel `base` on
    int64_t stride, base;
    const float* bias;
    bool add;
    bool exact;  // y ends with the last row; else it has room for whole panels
  };
  void product(const Product& x, int64_t begin, int64_t end, Run& run, int thread);
  void attention(const Op& op, Run& run, int thread);
  void moe(const Op& op, int index, Run& run, int thread);
  void choose(const Op& op, int64_t token);
  void group(const Op& op, int64_t tokens);
  void prepare_experts(const Op& op, int index, Run& run, int thread, bool inner);
  void multiply_experts(const Op& op, Run& run, int thread, bool inner);
  void positions(Run& run, int thread);
  void map(const Op& op, int64_t t, float* y);
  void finish_logits(float* logits, int64_t rows, int thread) const;
  float* row(int buffer, int64_t t) {
    const Buffer& b = buffers_[size_t(buffer)];
    return b.data + t * b.stride;
  }
  uint32_t acts_of(const Op& op) const;

  Pool pool_;
  const Isa& isa_;
  int64_t most_tokens_;
  std::vector<std::shared_ptr<Weight>> weights_;
  std::vector<std::vector<float>> vectors_;
  std::vector<std::shared_ptr<FileRows>> tables_;
  struct Turns {
    std::vector<double> frequencies;
    double magnitude;
    std::vector<float> cos, sin;  // [tokens][pairs]
  };
  std::vector<Turns> turns_;
  std::vector<Buffer> buffers_;
  struct State {
    KvShape shape;
    uint8_t* cache;
  };
  std::vector<State> states_;
  std::vector<Op> ops_;
  Op head_;
  bool has_head_ = false;
  int stream_ = -1, result_ = -1, layers_ = 0;
  int64_t kv_bytes_ = 0, kv_blocks_ = 0, scratch_ = 0;
  std::unique_ptr<Pages> kv_, arena_;
  std::vector<std::unique_ptr<Pages>> tiles_;  // by kind of activation
  std::vector<Thread> threads_;
  std::unique_ptr<Tickets[]> tickets_;
  size_t ticket_count_ = 0;
  // Room for one mixture of experts at a time; see moe.cc.
  struct Mixture {
    std::unique_ptr<Pages> pages;
    float *gate = nullptr, *up = nullptr, *out = nullptr;  // [tokens * used][...], by expert
    int32_t* chosen = nullptr;  // [tokens][used]
    float* share = nullptr;     // [tokens][used]
    int32_t* place = nullptr;   // [tokens][used]: its row
    int32_t* source = nullptr;  // [row]: which of [tokens][used]
    struct Group {
      int64_t expert, first, count, tile;  // rows, and the first of its tiles
    };
    std::vector<Group> groups;
    int64_t tiles = 0;
  } mixture_;
};

// What all threads share in one step.
struct Plan::Run {
  const Request* request;
  int64_t tokens;  // of the operations now running: of the batch, or of the rows wanted
  std::vector<int32_t> positions;
  std::atomic<bool> failed{false};
};

}  // namespace kvant
