// What colocate/model/native.py compiles at run time and calls: CPU kernels for decode steps. Plain C entry points; the
// caller owns every buffer. `is_bf16` says how weights and KV are stored; activations are float.
//
// Built with -fopenmp but linked without an OpenMP runtime: the symbols resolve to the one that torch has loaded, so
// that torch's thread count, affinity and wait policy hold here too and no second pool of threads exists.

#include <omp.h>

#include <memory>
#include <vector>

#include "decode.h"
#include "prefill.h"

namespace {

template <class S>
void linear(const float* x, int64_t rows, int64_t x_stride, const S* w, int64_t N, int64_t K, float* y, int64_t y_stride,
            bool accumulate, int threads) {
    const int64_t step = std::max<int64_t>(12, std::min<int64_t>(96, (N / (threads * 8) + 11) / 12 * 12));
    const Target to{y, y_stride, nullptr, accumulate};
    std::atomic<int64_t> next{0};
    #pragma omp parallel num_threads(threads) if (threads > 1)
    for (;;) {
        int64_t first = next.fetch_add(step, std::memory_order_relaxed);
        if (first >= N) break;
        linear_columns(x, rows, x_stride, w, K, first, std::min(first + step, N), to);
    }
}

template <class S>
void decode_layers(const DecoderShape& shape, const LayerPointers* layers, int num_layers, const DecodeBatch& batch) {
    const int count = num_layers * Decoder<S>::STAGES;
    std::unique_ptr<std::atomic<int>[]> counters(new std::atomic<int>[count]);
    for (int i = 0; i < count; i++) counters[i].store(0, std::memory_order_relaxed);
    std::unique_ptr<Barrier> barrier;
    #pragma omp parallel num_threads(batch.num_threads) if (batch.num_threads > 1)
    {
        #pragma omp single
        barrier.reset(new Barrier(omp_get_num_threads()));
        Decoder<S> decoder(shape, batch, omp_get_num_threads());
        decoder.run(layers, num_layers, omp_get_thread_num(), *barrier, counters.get());
    }
}

template <class S>
void write_kv(void* keys, void* values, int64_t num_kv_heads, int64_t block_size, int64_t head_dim, const S* kv,
              int64_t token_stride, const int64_t* slots, int64_t num_tokens) {
    const PoolLayer<S> pool{(S*)keys, (S*)values, num_kv_heads, block_size, head_dim, 0};
    for (int64_t t = 0; t < num_tokens; t++)
        for (int64_t h = 0; h < num_kv_heads; h++) {
            const S* key = kv + t * token_stride + h * head_dim;
            int64_t at = pool.offset_of_slot(slots[t], h);
            memcpy(pool.keys + at, key, head_dim * sizeof(S));
            memcpy(pool.values + at, key + num_kv_heads * head_dim, head_dim * sizeof(S));
        }
}

void prefill_attention(const DecoderShape& shape, const LayerPointers& layer, const PrefillSpan* spans, int64_t num_spans,
                       const float* q, int64_t q_stride, float* out, float* workspace, int threads) {
    const int64_t heads = shape.num_kv_heads, group = shape.num_heads / heads, dim = shape.head_dim;
    const PoolLayer<float> pool{(float*)layer.keys, (float*)layer.values, heads, shape.block_size, dim, layer.window};
    int64_t num_tokens = 0;
    for (int64_t i = 0; i < num_spans; i++) num_tokens += spans[i].num_tokens;
    // Short enough that threads which claim tasks end at about the same time.
    const int64_t share = (num_tokens * heads / (4 * threads) + ROWS - 1) / ROWS * ROWS;
    const int64_t most = PrefillTask::most_queries(group);
    const int64_t step = threads == 1 ? most : std::min(most, std::max<int64_t>(8 * ROWS, share));
    struct Task { int64_t span, begin; };
    std::vector<Task> tasks;
    for (int64_t i = 0; i < num_spans; i++)
        for (int64_t begin = 0; begin < spans[i].num_tokens; begin += step) tasks.push_back({i, begin});
    const int64_t count = tasks.size() * heads;
    std::atomic<int64_t> next{0};
    #pragma omp parallel num_threads(threads) if (threads > 1)
    {
        PrefillTask task(pool, group, shape.scale, workspace + omp_get_thread_num() * padded(PrefillTask::floats(group, dim)));
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
            const Task& at = tasks[tasks.size() - 1 - i / heads];  // of a span, the longest contexts first
            const PrefillSpan& span = spans[at.span];
            const int64_t head = i % heads, column = head * group * dim, out_stride = shape.num_heads * dim;
            task.run(span, head, at.begin, std::min(step, span.num_tokens - at.begin), q + span.first * q_stride + column,
                     q_stride, out + span.first * out_stride + column, out_stride);
        }
    }
}

}  // namespace

extern "C" {

int64_t colocate_lanes() { return LANES; }

int64_t colocate_workspace_floats(const DecoderShape* shape, int64_t rows, int64_t threads, int64_t max_context_len) {
    return Workspace(*shape, rows, threads, max_context_len).total;
}

// y [rows, N] = x [rows, K] W^T, or y += where `accumulate`. Strides in floats.
void colocate_linear(const float* x, int64_t rows, int64_t x_stride, const void* w, int64_t N, int64_t K, float* y,
                     int64_t y_stride, int64_t accumulate, int64_t threads, int64_t is_bf16) {
    if (is_bf16) linear(x, rows, x_stride, (const bf16*)w, N, K, y, y_stride, accumulate, threads);
    else linear(x, rows, x_stride, (const float*)w, N, K, y, y_stride, accumulate, threads);
}

void colocate_decode_layers(const DecoderShape* shape, const LayerPointers* layers, int64_t num_layers,
                            const DecodeBatch* batch, int64_t is_bf16) {
    if (is_bf16) decode_layers<bf16>(*shape, layers, num_layers, *batch);
    else decode_layers<float>(*shape, layers, num_layers, *batch);
}

// Final norm and lm_head: logits [rows, vocab_size] of hidden [rows, hidden_size]. `normed` has hidden's shape.
void colocate_logits(const DecoderShape* shape, const float* hidden, int64_t rows, const void* norm, const void* lm_head,
                     int64_t vocab_size, float* normed, float* logits, int64_t threads, int64_t is_bf16) {
    const int64_t width = shape->hidden_size;
    auto finish = [&](auto* weight, auto* head) {
        rms_norm_rows(hidden, rows, width, weight, shape->rms_norm_eps, normed);
        linear(normed, rows, width, head, vocab_size, width, logits, vocab_size, false, threads);
    };
    if (is_bf16) finish((const bf16*)norm, (const bf16*)lm_head);
    else finish((const float*)norm, (const float*)lm_head);
}

void colocate_write_kv(void* keys, void* values, int64_t num_kv_heads, int64_t block_size, int64_t head_dim,
                       const void* kv, int64_t token_stride, const int64_t* slots, int64_t num_tokens, int64_t is_bf16) {
    if (is_bf16) write_kv(keys, values, num_kv_heads, block_size, head_dim, (const bf16*)kv, token_stride, slots, num_tokens);
    else write_kv(keys, values, num_kv_heads, block_size, head_dim, (const float*)kv, token_stride, slots, num_tokens);
}

// Attention of one query per row: q [rows, num_heads, head_dim] with `q_stride` floats between rows, out [rows, q_size].
void colocate_decode_attention(const DecoderShape* shape, const LayerPointers* layer, const DecodeBatch* batch,
                               const float* q, int64_t q_stride, float* out, int64_t is_bf16) {
    const int64_t group = shape->num_heads / shape->num_kv_heads, tasks = batch->num_rows * shape->num_kv_heads;
    #pragma omp parallel num_threads(batch->num_threads) if (batch->num_threads > 1)
    {
        std::unique_ptr<Partial[]> partials(new Partial[2 * group]);
        #pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks; task++) {
            const int64_t row = task / shape->num_kv_heads, head = task % shape->num_kv_heads;
            auto attend = [&](auto pool) {
                attend_row(pool, batch->tables + row * batch->table_stride, head, batch->context_lens[row],
                           q + row * q_stride + head * group * shape->head_dim, shape->head_dim, group, shape->scale,
                           out + (row * shape->num_heads + head * group) * shape->head_dim, partials.get());
            };
            if (is_bf16) attend(PoolLayer<bf16>{(bf16*)layer->keys, (bf16*)layer->values, shape->num_kv_heads,
                                                shape->block_size, shape->head_dim, layer->window});
            else attend(PoolLayer<float>{(float*)layer->keys, (float*)layer->values, shape->num_kv_heads,
                                         shape->block_size, shape->head_dim, layer->window});
        }
    }
}

// Scratch of one thread of colocate_prefill_attention.
int64_t colocate_prefill_workspace_floats(const DecoderShape* shape) {
    return padded(PrefillTask::floats(shape->num_heads / shape->num_kv_heads, shape->head_dim));
}

// Causal attention of every span over the float32 pool, whose KV is written already: q [tokens, num_heads, head_dim] with
// `q_stride` floats between tokens, out [tokens, q_size]. `workspace` is aligned to 64 bytes and holds all threads' scratch.
void colocate_prefill_attention(const DecoderShape* shape, const LayerPointers* layer, const PrefillSpan* spans,
                                int64_t num_spans, const float* q, int64_t q_stride, float* out, float* workspace,
                                int64_t threads) {
    prefill_attention(*shape, *layer, spans, num_spans, q, q_stride, out, workspace, threads);
}

}  // extern "C"
