// Memory that is grown on demand and kept: scratch of a step, never initialised, aligned to a cache line.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace headrace {

template <class T>
class Buffer {
  public:
    // At least `count` elements; earlier contents are lost when it has to grow.
    T* reserve(std::size_t count) {
        if (count > capacity_) {
            const std::size_t wanted = count + count / 4;
            const std::size_t bytes = (wanted * sizeof(T) + 63) / 64 * 64;
            memory_.reset();
            capacity_ = 0;
            memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
            if (!memory_) throw std::bad_alloc();
            capacity_ = wanted;
        }
        return memory_.get();
    }
    T* data() { return memory_.get(); }
    const T* data() const { return memory_.get(); }

  private:
    struct Free {
        void operator()(T* memory) const { std::free(memory); }
    };
    std::unique_ptr<T, Free> memory_;
    std::size_t capacity_ = 0;
};

}  // namespace headrace
