// A thread's working memory, taken in one piece and given back together.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace swindow {

class Scratch {
 public:
  // Nothing is thrown: an exception must not leave a parallel region. Where there is no memory, `failed` becomes true,
  // and nothing may be taken.
  Scratch(int64_t bytes, bool* failed) : start_(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))), next_(start_) {
    if (start_ == nullptr) {
#pragma omp atomic write
      *failed = true;
    }
  }
  ~Scratch() { std::free(start_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // n values, or null where there is no memory.
  template <typename T>
  T* take(int64_t n) {
    if (start_ == nullptr) return nullptr;
    T* here = reinterpret_cast<T*>(next_);
    next_ += bytes<T>(n);
    return here;
  }
  template <typename T>
  static constexpr int64_t bytes(int64_t n) {
    return (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }

 private:
  char *start_, *next_;
};

}  // namespace swindow
