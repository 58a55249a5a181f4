// Runs a grid of GPU threads on the host: one fiber per thread, one block after the other.
//
// Fibers of a block change at barriers and warp exchanges alone. Blocks, and the fibers between two barriers, run in an
// order drawn from a seed, so that a missing barrier gives other results with another seed. Shared memory starts as NaN
// and is followed by a guard. A block whose threads do not all reach a barrier is reported, not waited for.
#pragma once
#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#ifdef __x86_64__
// Keeps the registers that a call must keep on the old stack, takes them from the new one. Ten times faster than
// swapcontext, which asks the operating system about signals.
extern "C" __attribute__((visibility("hidden"))) void glan_switch(void** from, void* to);
asm(R"(
.text
.globl glan_switch
.hidden glan_switch
.type glan_switch, @function
glan_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");
#endif

namespace fibers {
#ifdef __x86_64__
struct Context {
  void* top;
};
inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
  // As after a call: the address to return to, at an odd multiple of 8, and six registers above it.
  auto end = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t(15));
  end[-1] = nullptr;
  end[-2] = reinterpret_cast<void*>(entry);
  for (int i = 3; i <= 8; i++) end[-i] = nullptr;
  context.top = end - 8;
}
inline void switch_to(Context& from, Context& to) { glan_switch(&from.top, to.top); }
#else
struct Context {
  ucontext_t context;
};
inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = bytes;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}
inline void switch_to(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
#endif

struct Place3 {
  unsigned x = 1, y = 1, z = 1;
};

enum class State { Runs, AtBlock, AtWarp, Done };

constexpr size_t STACK_BYTES = 128 << 10;
constexpr size_t GUARD_BYTES = 64;
constexpr unsigned WARP = 32;

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  State state;
  Place3 thread;
  unsigned linear, exchanges;
};

struct Grid {
  Place3 blocks, threads, block;
  std::vector<Fiber> fibers;
  Fiber* current = nullptr;
  Context scheduler;
  void (*run)(void*) = nullptr;
  void* body = nullptr;
  std::vector<uint64_t> shared;  // 8-byte words, so that it is aligned; 16 is ensured by `shared_start`
  uint64_t slots[32][2][WARP];   // per warp, two generations, per lane
  uint64_t random = 1;
};
inline Grid grid;

inline unsigned draw(unsigned below) {
  grid.random = grid.random * 6364136223846793005ull + 1442695040888963407ull;
  return unsigned((grid.random >> 33) % below);
}

inline char* shared_start() {
  auto address = reinterpret_cast<uintptr_t>(grid.shared.data());
  return reinterpret_cast<char*>((address + 15) & ~uintptr_t(15));
}

inline void yield(State state) {
  grid.current->state = state;
  switch_to(grid.current->context, grid.scheduler);
}

inline void entry() {
  grid.run(grid.body);
  yield(State::Done);
}

/// A value of each lane in, that of lane `from` out. All lanes of the warp take part.
template <class T>
T exchange(T value, unsigned from) {
  static_assert(sizeof(T) <= 8);
  Fiber& me = *grid.current;
  auto& slots = grid.slots[me.linear / WARP][me.exchanges++ % 2];
  memcpy(&slots[me.linear % WARP], &value, sizeof value);
  yield(State::AtWarp);
  T other;
  memcpy(&other, &slots[from % WARP], sizeof other);
  return other;
}
inline unsigned lane() { return grid.current->linear % WARP; }

/// False where some threads wait for others that never come.
inline bool run_block(std::vector<unsigned>& order) {
  const unsigned count = unsigned(order.size());
  for (unsigned i = 0; i < count; i++) {
    Fiber& fiber = grid.fibers[i];
    prepare(fiber.context, fiber.stack.get(), STACK_BYTES, entry);
    fiber.state = State::Runs;
    fiber.linear = i;
    fiber.exchanges = 0;
    fiber.thread = {i % grid.threads.x, i / grid.threads.x % grid.threads.y, i / grid.threads.x / grid.threads.y};
  }
  for (;;) {
    for (unsigned i = count; i > 1; i--) std::swap(order[i - 1], order[draw(i)]);
    bool moved = false;
    for (unsigned i : order)
      if (grid.fibers[i].state == State::Runs) {
        grid.current = &grid.fibers[i];
        switch_to(grid.scheduler, grid.current->context);
        moved = true;
      }
    auto release = [&](unsigned first, unsigned end, State from) {
      for (unsigned i = first; i < end; i++)
        if (grid.fibers[i].state != from) return;
      for (unsigned i = first; i < end; i++) grid.fibers[i].state = State::Runs;
      moved = true;
    };
    for (unsigned first = 0; first < count; first += WARP) release(first, std::min(count, first + WARP), State::AtWarp);
    release(0, count, State::AtBlock);
    unsigned done = 0;
    for (unsigned i = 0; i < count; i++) done += grid.fibers[i].state == State::Done;
    if (done == count) return true;
    if (!moved) {
      fprintf(stderr, "block (%u, %u, %u): %u of %u threads have left, the others wait for one another\n", grid.block.x,
              grid.block.y, grid.block.z, done, count);
      return false;
    }
  }
}

/// Runs `body` for every thread of every block. 0, 1 (threads wait for ever) or 2 (written past shared memory).
inline int launch(const unsigned* blocks, const unsigned* threads, size_t shared_bytes, uint64_t seed, void (*run)(void*),
                  void* body) {
  grid.blocks = {blocks[0], blocks[1], blocks[2]};
  grid.threads = {threads[0], threads[1], threads[2]};
  grid.random = seed * 2 + 1;
  grid.run = run;
  grid.body = body;
  const unsigned count = threads[0] * threads[1] * threads[2];
  if (grid.fibers.size() < count) grid.fibers.resize(count);
  for (unsigned i = 0; i < count; i++)
    if (!grid.fibers[i].stack) grid.fibers[i].stack.reset(new char[STACK_BYTES]);
  std::vector<unsigned> order(count), block_order(blocks[0] * blocks[1] * blocks[2]);
  std::iota(order.begin(), order.end(), 0);
  std::iota(block_order.begin(), block_order.end(), 0);
  for (unsigned i = unsigned(block_order.size()); i > 1; i--) std::swap(block_order[i - 1], block_order[draw(i)]);
  for (unsigned index : block_order) {
    grid.block = {index % blocks[0], index / blocks[0] % blocks[1], index / blocks[0] / blocks[1]};
    grid.shared.assign((shared_bytes + GUARD_BYTES + 16) / 8 + 1, ~0ull);
    if (!run_block(order)) return 1;
    const char* guard = shared_start() + shared_bytes;
    for (size_t i = 0; i < GUARD_BYTES; i++)
      if (guard[i] != char(0xff)) return 2;
  }
  return 0;
}

/// Calls `kernel` with arguments as a driver passes them: an array of pointers to their values.
template <class... Args>
struct Call {
  void (*kernel)(Args...);
  void** args;
  static void run(void* self) {
    auto call = static_cast<Call*>(self);
    call->with(std::index_sequence_for<Args...>{});
  }
  template <size_t... I>
  void with(std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<Args>*>(args[I])...);
  }
};

template <class... Args>
int launch_kernel(void (*kernel)(Args...), const unsigned* blocks, const unsigned* threads, size_t shared_bytes,
                  uint64_t seed, void** args, unsigned count) {
  if (count != sizeof...(Args)) return 3;
  Call<Args...> call{kernel, args};
  return launch(blocks, threads, shared_bytes, seed, Call<Args...>::run, &call);
}
}  // namespace fibers
