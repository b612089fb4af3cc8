/* What the upstream and the load client must agree on: the request body, the events of a stream, the clock.
 *
 * Both sides are given nothing but numbers (a body's size, a count of events) and derive every byte from them, so
 * that each can compare what arrives with what was sent, byte by byte.  Three things vary:
 *   nonce  16 hex digits, new for every request.  It goes up in the body and comes back in the answer's `id`; an
 *          answer that reaches another client is thereby found.
 *   index  6 digits, the place of an event in its stream.
 *   stamp  20 digits, the upstream's CLOCK_MONOTONIC in nanoseconds as it wrote the event.
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <time.h>

#define API_KEY "sk-ant-bench-0000000000000000"
#define MODEL "claude-sonnet-4-5"

enum {
    NONCE_DIGITS = 16,
    INDEX_DIGITS = 6,
    STAMP_DIGITS = 20,
    MIN_EVENTS = 6,       /* message_start, content_block_start, a delta, content_block_stop, message_delta, _stop */
    MAX_EVENTS = 999999,
    MIN_BODY = 512,
    MAX_BODY = 64 << 20,
    MAX_BURST = 32,
    MAX_EVENT_BYTES = 512,
    MAX_HEAD = 16384,     /* bytes of a request line or status line with its headers */
    SCRATCH = 256 << 10,  /* one read */
    MAX_FDS = 20000,
};

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(2);
}

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Take every descriptor that the hard limit allows, up to MAX_FDS (which sizes the tables). */
static inline int raise_nofile(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        die("getrlimit: %s", strerror(errno));
    limit.rlim_cur = limit.rlim_max < MAX_FDS ? limit.rlim_max : MAX_FDS;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        die("setrlimit: %s", strerror(errno));
    return (int)limit.rlim_cur;
}

static inline void put_digits(char *at, int digits, uint64_t value)
{
    for (int i = digits - 1; i >= 0; i--, value /= 10)
        at[i] = (char)('0' + value % 10);
}

/* False where a byte is not a digit. */
static inline bool get_digits(const char *at, int digits, uint64_t *value)
{
    *value = 0;
    for (int i = 0; i < digits; i++) {
        if (at[i] < '0' || at[i] > '9')
            return false;
        *value = *value * 10 + (uint64_t)(at[i] - '0');
    }
    return true;
}

static inline void put_nonce(char *at, uint64_t value)
{
    for (int i = NONCE_DIGITS - 1; i >= 0; i--, value >>= 4)
        at[i] = "0123456789abcdef"[value & 15];
}

/* ---- the request body: a conversation in the Messages API's form, exactly `size` bytes long ---- */

#define BODY_BEFORE_NONCE "{\"model\":\"" MODEL "\",\"max_tokens\":1024,\"metadata\":{\"user_id\":\""

enum { NONCE_AT = sizeof BODY_BEFORE_NONCE - 1 };

static inline char *make_body(size_t size, bool stream)
{
    static const char turn[] =
        "{\"role\":\"%s\",\"content\":[{\"type\":\"text\",\"text\":\"Turn %06d. The quick brown fox jumps over the "
        "lazy dog, and says \\\"so what\\\" while it does.\\nThen it writes a function, reads the test's output, "
        "and finds that 3 of 4 have passed; the fourth wants a file that nobody has made yet.\"}]},";
    static const char *const roles[] = {"user", "assistant"};
    char *body = malloc(size + sizeof turn + 64);
    if (!body)
        die("out of memory");
    size_t at = (size_t)sprintf(body, "%s%0*d\"},\"stream\":%s,\"messages\":[", BODY_BEFORE_NONCE, NONCE_DIGITS, 0,
                                stream ? "true" : "false");
    for (int i = 0; at + sizeof turn + 128 < size; i++)
        at += (size_t)sprintf(body + at, turn, roles[i % 2], i);
    at += (size_t)sprintf(body + at, "{\"role\":\"user\",\"content\":\"");
    static const char end[] = "\"}]}";
    size_t end_bytes = sizeof end - 1;
    memset(body + at, 'x', size - end_bytes - at);
    memcpy(body + size - end_bytes, end, end_bytes);
    return body;
}

/* ---- the answers ---- */

/* A piece of an answer, with the places of what varies; -1 where it has none. */
struct piece {
    char text[MAX_EVENT_BYTES];
    int length, nonce_at, index_at, stamp_at;
};

enum {
    MESSAGE_START, BLOCK_START, BLOCK_DELTA, BLOCK_STOP, MESSAGE_DELTA, MESSAGE_STOP,
    PLAIN, /* the whole answer to a request that wants no stream */
    PIECES,
};

static struct piece pieces[PIECES];

#define NONCE_MARK "NNNNNNNNNNNNNNNN"
#define INDEX_MARK "IIIIII"
#define STAMP_MARK "TTTTTTTTTTTTTTTTTTTT"
#define EVENT(name, rest) \
    "event: " name "\ndata: {\"type\":\"" name "\"" rest ",\"bench_ns\":\"" STAMP_MARK "\"}\n\n"

static inline int place_of(const char *text, const char *mark)
{
    const char *found = strstr(text, mark);
    return found ? (int)(found - text) : -1;
}

static inline void make_pieces(void)
{
    static const char *const texts[PIECES] = {
        [MESSAGE_START] = EVENT("message_start",
            ",\"message\":{\"id\":\"msg_" NONCE_MARK "\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\""
            MODEL "\",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{\"input_tokens\":1000,"
            "\"output_tokens\":1}}"),
        [BLOCK_START] = EVENT("content_block_start",
            ",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}"),
        [BLOCK_DELTA] = EVENT("content_block_delta",
            ",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\" piece " INDEX_MARK "\"}"),
        [BLOCK_STOP] = EVENT("content_block_stop", ",\"index\":0"),
        [MESSAGE_DELTA] = EVENT("message_delta",
            ",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},\"usage\":{\"output_tokens\":200}"),
        [MESSAGE_STOP] = EVENT("message_stop", ""),
        [PLAIN] = "{\"id\":\"msg_" NONCE_MARK "\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"" MODEL
            "\",\"content\":[{\"type\":\"text\",\"text\":\"Done.\"}],\"stop_reason\":\"end_turn\","
            "\"stop_sequence\":null,\"usage\":{\"input_tokens\":1000,\"output_tokens\":3}}",
    };
    for (int i = 0; i < PIECES; i++) {
        struct piece *piece = &pieces[i];
        piece->length = snprintf(piece->text, sizeof piece->text, "%s", texts[i]);
        if (piece->length >= MAX_EVENT_BYTES)
            die("piece %d is too long", i);
        piece->nonce_at = place_of(piece->text, NONCE_MARK);
        piece->index_at = place_of(piece->text, INDEX_MARK);
        piece->stamp_at = place_of(piece->text, STAMP_MARK);
    }
}

/* The kind of event number `index` of a stream of `total`. */
static inline const struct piece *piece_of(int index, int total)
{
    if (total == 0)
        return &pieces[PLAIN];
    if (index < BLOCK_DELTA)
        return &pieces[index];
    int left = total - index; /* 3: block stop, 2: message delta, 1: message stop */
    return &pieces[left > 3 ? BLOCK_DELTA : MESSAGE_STOP + 1 - left];
}

/* ---- chunked transfer coding (RFC 9112 section 7.1), for both sides ---- */

enum chunk_state {
    CHUNK_SIZE, CHUNK_EXTENSION, CHUNK_SIZE_LF, CHUNK_DATA, CHUNK_DATA_CR, CHUNK_DATA_LF,
    TRAILER, TRAILER_LINE, LAST_LF, CHUNKS_DONE,
};

struct dechunk {
    enum chunk_state state;
    int digits;    /* of the size that is being read */
    uint64_t left; /* of the chunk that is being read */
};

static inline int hex_value(char byte)
{
    if (byte >= '0' && byte <= '9')
        return byte - '0';
    byte |= 32;
    return byte >= 'a' && byte <= 'f' ? byte - 'a' + 10 : -1;
}

/* Take framing from `data` up to the next piece of payload, and that piece.  Returns how many bytes were taken; the
 * last `*bytes` of them are the payload, which may be none; -1 where it is malformed.  To be called again with what
 * is left, until nothing is left or the state is CHUNKS_DONE. */
static inline ssize_t dechunk(struct dechunk *d, const char *data, size_t length, size_t *bytes)
{
    *bytes = 0;
    for (size_t at = 0; at < length; at++) {
        char byte = data[at];
        switch (d->state) {
        case CHUNK_SIZE: {
            int value = hex_value(byte);
            if (value >= 0 && d->digits < 15) {
                d->left = d->left << 4 | (uint64_t)value;
                d->digits++;
            } else if (d->digits && byte == '\r') {
                d->state = CHUNK_SIZE_LF;
            } else if (d->digits && byte == ';') {
                d->state = CHUNK_EXTENSION;
            } else {
                return -1;
            }
            break;
        }
        case CHUNK_EXTENSION:
            if (byte == '\r')
                d->state = CHUNK_SIZE_LF;
            break;
        case CHUNK_SIZE_LF:
            if (byte != '\n')
                return -1;
            d->state = d->left ? CHUNK_DATA : TRAILER;
            break;
        case CHUNK_DATA: {
            size_t n = length - at < d->left ? length - at : (size_t)d->left;
            d->left -= n;
            if (!d->left)
                d->state = CHUNK_DATA_CR;
            *bytes = n;
            return (ssize_t)(at + n);
        }
        case CHUNK_DATA_CR:
            if (byte != '\r')
                return -1;
            d->state = CHUNK_DATA_LF;
            break;
        case CHUNK_DATA_LF:
            if (byte != '\n')
                return -1;
            d->digits = 0;
            d->state = CHUNK_SIZE;
            break;
        case TRAILER: /* the first byte of a line */
            d->state = byte == '\r' ? LAST_LF : TRAILER_LINE;
            break;
        case TRAILER_LINE:
            if (byte == '\n')
                d->state = TRAILER;
            break;
        case LAST_LF:
            if (byte != '\n')
                return -1;
            d->state = CHUNKS_DONE;
            return (ssize_t)(at + 1);
        case CHUNKS_DONE:
            return (ssize_t)at;
        }
    }
    return (ssize_t)length;
}

#endif
