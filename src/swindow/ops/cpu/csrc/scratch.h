// A thread's working memory, taken in one piece and given back together.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace swindow {

class Scratch {
 public:
  explicit Scratch(int64_t bytes) : start_(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))), next_(start_) {
    if (start_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { std::free(start_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <typename T>
  T* take(int64_t n) {
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
