// A weight as the engine holds it: panels in memory, or rows in a file that become panels when used.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../kernels/packing.h"
#include "cpu.h"
#include "threads.h"

namespace kvant {

// Memory straight from the system: zeroed when first touched, in large pages where it can be.
class Pages {
 public:
  explicit Pages(int64_t bytes);  // throws std::bad_alloc
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t *base_, *data_;
  int64_t bytes_, mapped_ = 0;
};

// Rows of one storage type in open files: all in one place, or as many in each of several. The
// descriptors are the holder's own.
class FileRows {
 public:
  struct Part {
    int fd;
    int64_t offset;
  };
  FileRows(std::vector<Part> parts, int type, int64_t rows, int64_t columns);
  ~FileRows();
  FileRows(const FileRows&) = delete;
  FileRows& operator=(const FileRows&) = delete;

  int64_t row_bytes() const { return row_bytes_; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int type() const { return type_; }
  // False where the file ends early or cannot be read. The rows lie in one part.
  bool read(int64_t row, int64_t count, uint8_t* out) const;
  // One row as floats.
  bool decode(int64_t row, uint8_t* raw, float* out) const;

 private:
  std::vector<Part> parts_;
  std::vector<int> own_;
  int type_;
  int64_t rows_, columns_, row_bytes_;
};

// One matrix, or a stack of matrices of one shape (experts), one after the other: panels never hold
// rows of two.
class Weight {
 public:
  // `order[i]` is the file's row that is row i here; empty: as in the file.
  Weight(std::shared_ptr<FileRows> source, std::vector<int32_t> order, bool resident,
         int64_t matrices = 1);
  // From rows in memory, [rows][row bytes].
  Weight(int type, int64_t rows, int64_t columns, const uint8_t* data, int64_t matrices = 1);

  // Takes a resident weight's memory and fills its panels; false where the file ends early. Until
  // then nothing has been taken, so that what it will be can be counted first.
  bool load(Pool& pool);

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t panels() const { return panels_; }
  int64_t matrices() const { return matrices_; }
  int64_t matrix_rows() const { return rows_ / matrices_; }
  int64_t matrix_panels() const { return panels_ / matrices_; }
  int64_t panel_bytes() const { return panel_bytes_; }
  int type() const { return type_; }
  bool resident() const { return resident_; }
  int64_t memory() const { return resident_ ? panels_ * panel_bytes_ : 0; }
  const PanelKernels& kernels() const { return *kernels_; }

  // Panel `p`: in memory, or built in `scratch` (`scratch_bytes`); null where reading failed, or
  // `load` has not been called.
  const uint8_t* panel(int64_t p, uint8_t* scratch) const;
  int64_t scratch_bytes() const;

 private:
  void find_kernels();
  // First row of panel `p`, and how many it has.
  int64_t first_row(int64_t p) const {
    return p / matrix_panels() * matrix_rows() + p % matrix_panels() * kPanelRows;
  }
  int panel_rows(int64_t p) const {
    const int64_t rest = matrix_rows() - p % matrix_panels() * kPanelRows;
    return int(rest < kPanelRows ? rest : kPanelRows);
  }
  bool build(int64_t p, uint8_t* raw, uint8_t* panel) const;

  std::shared_ptr<FileRows> source_;
  std::vector<int32_t> order_;
  const PanelKernels* kernels_ = nullptr;
  bool resident_;
  int type_ = 0;
  int64_t matrices_ = 1, rows_ = 0, columns_ = 0, panels_ = 0, panel_bytes_ = 0;
  std::unique_ptr<Pages> pages_;
};

// The panel kernels of a storage type on this processor; null where there are none.
const PanelKernels* panel_kernels_of(int type);

}  // namespace kvant
