// Threads that go through a forward together: one parallel region per call, inside it a barrier between stages and a
// counter per stage from which threads claim blocks of work.
//
// Claiming instead of a fixed split keeps a thread that shares its core with another process from holding up the rest.
// The barrier spins for a few microseconds, because stages take tens of them, then sleeps in the kernel, because on an
// oversubscribed core the others need the time.

#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>

#if defined(__x86_64__)
#include <immintrin.h>
#define RELAX() _mm_pause()
#else
#define RELAX() std::atomic_signal_fence(std::memory_order_seq_cst)
#endif

class Barrier {
  public:
    explicit Barrier(int size) : size_(size) {}

    void wait() {
        if (size_ == 1) return;
        uint32_t round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_seq_cst);
            if (sleepers_.load(std::memory_order_seq_cst) > 0) futex(FUTEX_WAKE_PRIVATE, INT_MAX);
            return;
        }
        for (int i = 0; i < SPINS; i++) {
            if (round_.load(std::memory_order_acquire) != round) return;
            RELAX();
        }
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        while (round_.load(std::memory_order_seq_cst) == round) futex(FUTEX_WAIT_PRIVATE, round);
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }

  private:
    static constexpr int SPINS = 1000;  // about 20 microseconds

    void futex(int operation, uint32_t value) { syscall(SYS_futex, (uint32_t*)&round_, operation, value, nullptr, nullptr, 0); }

    const int size_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> round_{0};
    std::atomic<int> sleepers_{0};
};
