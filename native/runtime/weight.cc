#include "weight.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <stdexcept>

#include <sys/mman.h>
#include <unistd.h>

#include "rows.h"

namespace kvant {

namespace {

constexpr int64_t kLarge = 2 << 20;  // a large page

// AddressSanitizer guards what the allocator gives, to the byte, and nothing in pages of our own.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kGuarded = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
constexpr bool kGuarded = true;
#else
constexpr bool kGuarded = false;
#endif
#else
constexpr bool kGuarded = false;
#endif

}  // namespace

// Reserved with room to begin at a large page's border, so that all but the tail can be in such pages:
// reading with a quarter more bandwidth is what that gives on a virtual machine.
Pages::Pages(int64_t bytes) : bytes_((bytes + 4095) / 4096 * 4096) {
  if (bytes_ == 0) bytes_ = 4096;
  if (kGuarded) {
    const size_t lines = size_t(bytes < 1 ? 64 : (bytes + 63) / 64 * 64);
    base_ = data_ = static_cast<uint8_t*>(std::aligned_alloc(64, lines));
    if (!base_) throw std::bad_alloc();
    std::memset(base_, 0, lines);
    return;
  }
  mapped_ = bytes_ + (bytes_ >= kLarge ? kLarge : 0);
  void* p = mmap(nullptr, size_t(mapped_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<uint8_t*>(p);
  data_ = base_;
  if (bytes_ >= kLarge) {
    data_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(p) + kLarge - 1) / kLarge * kLarge);
#if defined(MADV_HUGEPAGE)
    madvise(data_, size_t(bytes_), MADV_HUGEPAGE);  // a wish: it may be turned off
#endif
  }
}

Pages::~Pages() {
  if (kGuarded)
    std::free(base_);
  else
    munmap(base_, size_t(mapped_));
}

FileRows::FileRows(std::vector<Part> parts, int type, int64_t rows, int64_t columns)
    : parts_(std::move(parts)), type_(type), rows_(rows), columns_(columns) {
  const BlockShape s = block_shape(type);
  if (s.elements == 0 || columns % s.elements || rows < 1 || columns < 1 || parts_.empty() ||
      rows % int64_t(parts_.size()))
    throw std::invalid_argument("rows do not fit their storage type");
  row_bytes_ = columns / s.elements * s.bytes;
  std::map<int, int> kept;  // parts in one file share a descriptor
  for (Part& part : parts_) {
    const auto found = kept.try_emplace(part.fd, -1).first;
    if (found->second < 0) {
      found->second = dup(part.fd);
      if (found->second < 0) {
        for (int fd : own_) close(fd);
        throw std::runtime_error("the file's descriptor cannot be kept open");
      }
      own_.push_back(found->second);
    }
    part.fd = found->second;
  }
}

FileRows::~FileRows() {
  for (int fd : own_) close(fd);
}

bool FileRows::read(int64_t row, int64_t count, uint8_t* out) const {
  const int64_t each = rows_ / int64_t(parts_.size());
  const Part& part = parts_[size_t(row / each)];
  int64_t left = count * row_bytes_, at = part.offset + row % each * row_bytes_;
  while (left > 0) {
    const ssize_t n = pread(part.fd, out, size_t(left), at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    out += n;
    at += n;
    left -= n;
  }
  return true;
}

bool FileRows::decode(int64_t row, uint8_t* raw, float* out) const {
  if (!read(row, 1, raw)) return false;
  decode_rows(type_, raw, out, 1, columns_);
  return true;
}

const PanelKernels* panel_kernels_of(int type) {
  const Isa& isa = current_isa();
  for (const PackingKernels* const* p = isa.packings; *p; ++p)
    if ((*p)->id == type) return (*p)->panels;
  return isa.float_panels(type);
}

void Weight::find_kernels() {
  kernels_ = panel_kernels_of(type_);
  if (!kernels_) throw std::invalid_argument("the engine has no kernels for this storage type");
  if (matrices_ < 1 || rows_ % matrices_)
    throw std::invalid_argument("the matrices of a stack have as many rows each");
  panels_ = (matrix_rows() + kPanelRows - 1) / kPanelRows * matrices_;
  panel_bytes_ = kernels_->panel_bytes(columns_);
}

Weight::Weight(std::shared_ptr<FileRows> source, std::vector<int32_t> order, bool resident,
               int64_t matrices)
    : source_(std::move(source)),
      order_(std::move(order)),
      resident_(resident),
      type_(source_->type()),
      matrices_(matrices),
      rows_(source_->rows()),
      columns_(source_->columns()) {
  if (!order_.empty() && int64_t(order_.size()) != rows_)
    throw std::invalid_argument("the order of rows has another length");
  for (int32_t row : order_)
    if (row < 0 || row >= rows_) throw std::invalid_argument("the order names a row there is not");
  find_kernels();
}

Weight::Weight(int type, int64_t rows, int64_t columns, const uint8_t* data, int64_t matrices)
    : resident_(true), type_(type), matrices_(matrices), rows_(rows), columns_(columns) {
  find_kernels();
  pages_ = std::make_unique<Pages>(panels_ * panel_bytes_);
  const BlockShape s = block_shape(type);
  const int64_t row_bytes = columns / s.elements * s.bytes;
  for (int64_t p = 0; p < panels_; ++p) {
    const uint8_t* from[kPanelRows] = {};
    const int n = panel_rows(p);
    for (int r = 0; r < n; ++r) from[r] = data + (first_row(p) + r) * row_bytes;
    kernels_->interleave(from, n, columns, pages_->data() + p * panel_bytes_);
  }
}

bool Weight::build(int64_t p, uint8_t* raw, uint8_t* panel) const {
  const int64_t first = first_row(p), row_bytes = source_->row_bytes();
  const int n = panel_rows(p);
  const uint8_t* rows[kPanelRows] = {};
  for (int r = 0; r < n; ++r) rows[r] = raw + r * row_bytes;
  if (order_.empty()) {
    if (!source_->read(first, n, raw)) return false;
  } else {
    for (int r = 0; r < n; ++r)
      if (!source_->read(order_[size_t(first + r)], 1, raw + r * row_bytes)) return false;
  }
  kernels_->interleave(rows, n, columns_, panel);
  return true;
}

bool Weight::load(Pool& pool) {
  if (!resident_ || pages_) return true;
  auto pages = std::make_unique<Pages>(panels_ * panel_bytes_);
  Tickets tickets;
  std::atomic<bool> good{true};
  pool.run([&](int) {
    std::vector<uint8_t> raw(size_t(kPanelRows * source_->row_bytes()));
    for (int64_t p = tickets.take(1); p < panels_ && good; p = tickets.take(1))
      if (!build(p, raw.data(), pages->data() + p * panel_bytes_)) good = false;
  });
  if (good) pages_ = std::move(pages);
  return good;
}

int64_t Weight::scratch_bytes() const {
  return resident() ? 0
                    : (kPanelRows * source_->row_bytes() + 63) / 64 * 64 + (panel_bytes_ + 63) / 64 * 64;
}

const uint8_t* Weight::panel(int64_t p, uint8_t* scratch) const {
  if (pages_) return pages_->data() + p * panel_bytes_;
  if (resident_) return nullptr;  // never loaded
  uint8_t* panel = scratch + (kPanelRows * source_->row_bytes() + 63) / 64 * 64;
  return build(p, scratch, panel) ? panel : nullptr;
}

}  // namespace kvant
