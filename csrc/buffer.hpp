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
            auto* memory = static_cast<T*>(std::aligned_alloc(64, bytes));
            if (!memory) throw std::bad_alloc();
            memory_.reset(memory, [](T* old) { std::free(old); });
            capacity_ = wanted;
        }
        return memory_.get();
    }
    T* data() { return memory_.get(); }
    const T* data() const { return memory_.get(); }
    // Keeps today's memory alive for views handed out, even if the buffer grows meanwhile.
    std::shared_ptr<T> share() const { return memory_; }

  private:
    std::shared_ptr<T> memory_;
    std::size_t capacity_ = 0;
};

}  // namespace headrace
