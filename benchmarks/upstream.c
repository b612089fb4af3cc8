/* The stand-in upstream of the benchmarks: HTTP/1.1 on epoll, one thread.
 *
 *     upstream PORT
 *
 * listens on 127.0.0.1 and, once it does, writes "ready".  The query of a request says what is wanted:
 *
 *     POST /v1/messages?size=BYTES                                  a small JSON answer with a Content-Length
 *     POST /v1/messages?size=BYTES&events=N&gap_us=G&burst=B        an event stream of N events, chunked
 *     …&hold=1                                                      the first event, and the others after /go
 *     GET  /go                                                      let all streams that are held begin
 *     GET  /stats                                                   what has happened so far, as JSON
 *
 * The body of a POST must be the `size` bytes that common.h describes, each one of them as it says; else the answer
 * is 400 and `bad` in the stats goes up.  Of a stream, the first event leaves at once and together with the headers,
 * the others in bursts of B, each event in a chunk of its own.  With a gap, a burst is due every G microseconds, by
 * an absolute schedule; with G = 0, one burst leaves in each turn of the loop, so that streams interleave.  Streams
 * that /go lets begin are spread evenly over their gap.
 */
#define _GNU_SOURCE
#include "common.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

/* Expected request bodies, by size. */
struct body {
    size_t size;
    bool stream;
    char *bytes;
};

enum { OUT_BYTES = 1024 + MAX_BURST * (MAX_EVENT_BYTES + 16) };

enum state {
    HEAD,      /* a request's head is arriving */
    BODY,      /* its body is */
    WRITING,   /* a whole answer is in `out` */
    STREAMING, /* events are still to be written */
};

struct conn {
    int fd;
    enum state state;
    bool wants_write; /* EPOLLOUT is registered, because the socket took less than was offered */
    bool held;        /* waits for /go */
    bool ready;       /* on the list of streams that write in every turn */
    int heap_at;      /* place in the timer heap, -1 = not there */
    uint64_t due;

    int head_bytes;
    const char *complaint; /* why the request gets 400 */
    bool chunked;
    struct dechunk dechunk;
    uint64_t body_left; /* not chunked: how much has yet to come */
    uint64_t body_at;   /* how much has come */
    const struct body *body;
    char nonce[NONCE_DIGITS];

    uint64_t size, events, gap_us, burst, hold;
    uint64_t next_event;

    int out_at, out_bytes;
    char out[OUT_BYTES];
    char head[MAX_HEAD];
};

static struct conn *conns[MAX_FDS];
static struct conn *heap[MAX_FDS];
static int heap_size;
static struct conn *ready_list[MAX_FDS];
static int ready_count;
static int epoll_fd, timer_fd;
static struct body bodies[16];
static int body_count;
static char scratch[SCRATCH];
static struct { uint64_t requests, bad, open_streams, accepted, broken; } stats;

/* ---- timers: a binary heap, and one timerfd set to its head ---- */

static void heap_put(int at, struct conn *c)
{
    heap[at] = c;
    c->heap_at = at;
}

static void heap_up(int at)
{
    struct conn *c = heap[at];
    for (int parent; at > 0 && heap[parent = (at - 1) / 2]->due > c->due; at = parent)
        heap_put(at, heap[parent]);
    heap_put(at, c);
}

static void heap_down(int at)
{
    struct conn *c = heap[at];
    for (;;) {
        int child = 2 * at + 1;
        if (child >= heap_size)
            break;
        if (child + 1 < heap_size && heap[child + 1]->due < heap[child]->due)
            child++;
        if (heap[child]->due >= c->due)
            break;
        heap_put(at, heap[child]);
        at = child;
    }
    heap_put(at, c);
}

static void schedule(struct conn *c, uint64_t due)
{
    c->due = due;
    if (c->heap_at < 0)
        heap_put(heap_size++, c);
    heap_up(c->heap_at);
    heap_down(c->heap_at);
}

static void unschedule(struct conn *c)
{
    int at = c->heap_at;
    if (at < 0)
        return;
    c->heap_at = -1;
    struct conn *last = heap[--heap_size];
    if (last == c)
        return;
    heap_put(at, last);
    heap_up(at);
    heap_down(last->heap_at);
}

static void set_timer(void)
{
    static uint64_t set;
    uint64_t wanted = heap_size ? heap[0]->due : 0;
    if (wanted == set)
        return;
    set = wanted;
    struct itimerspec spec = {.it_value = {.tv_sec = (time_t)(wanted / 1000000000u),
                                           .tv_nsec = (long)(wanted % 1000000000u)}};
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &spec, NULL) < 0)
        die("timerfd_settime: %s", strerror(errno));
}

/* ---- connections ---- */

static void close_conn(struct conn *c)
{
    if (c->state != HEAD || c->head_bytes)
        stats.broken++;
    if (c->state == STREAMING)
        stats.open_streams--;
    unschedule(c);
    if (c->ready) /* the list's turn skips what is NULL */
        for (int i = 0; i < ready_count; i++)
            if (ready_list[i] == c)
                ready_list[i] = NULL;
    conns[c->fd] = NULL;
    close(c->fd);
    free(c);
}

static void watch(struct conn *c, bool writing)
{
    if (c->wants_write == writing)
        return;
    c->wants_write = writing;
    struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.fd = c->fd};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event) < 0)
        die("epoll_ctl: %s", strerror(errno));
}

/* Let a stream whose `out` is empty write again when it is due: at once where it was held back for longer. */
static void resume(struct conn *c)
{
    if (c->held)
        return;
    if (c->gap_us) {
        if (c->heap_at < 0)
            schedule(c, c->due);
    } else if (!c->ready) {
        c->ready = true;
        ready_list[ready_count++] = c;
    }
}

/* Write what is in `out`, and go on to what comes after it.  False where the connection is gone (and closed). */
static bool flush(struct conn *c)
{
    while (c->out_at < c->out_bytes) {
        ssize_t n = send(c->fd, c->out + c->out_at, (size_t)(c->out_bytes - c->out_at), MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            watch(c, true);
            return true;
        }
        if (n < 0) {
            close_conn(c);
            return false;
        }
        c->out_at += (int)n;
    }
    c->out_at = c->out_bytes = 0;
    watch(c, false);
    if (c->state == WRITING)
        c->state = HEAD;
    else if (c->state == STREAMING)
        resume(c);
    return true;
}

/* ---- answers ---- */

#define ANSWER_HEADERS \
    "Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n" \
    "request-id: req_011CbenchABCDEFGHJKLMNPQ\r\n" \
    "anthropic-organization-id: 00000000-0000-0000-0000-000000000000\r\n" \
    "anthropic-ratelimit-requests-limit: 4000\r\n" \
    "anthropic-ratelimit-requests-remaining: 3999\r\n" \
    "anthropic-ratelimit-requests-reset: 2026-01-01T00:00:01Z\r\n" \
    "anthropic-ratelimit-tokens-limit: 480000\r\n" \
    "anthropic-ratelimit-tokens-remaining: 479000\r\n" \
    "anthropic-ratelimit-tokens-reset: 2026-01-01T00:00:01Z\r\n" \
    "strict-transport-security: max-age=31536000; includeSubDomains; preload\r\n" \
    "Server: bench\r\n" \
    "X-Robots-Tag: none\r\n"

static void answer(struct conn *c, const char *status, const char *body, size_t length)
{
    c->out_bytes = snprintf(c->out, sizeof c->out,
                            "HTTP/1.1 %s\r\n" ANSWER_HEADERS
                            "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                            status, length);
    memcpy(c->out + c->out_bytes, body, length);
    c->out_bytes += (int)length;
    c->state = WRITING;
}

static void add_event(struct conn *c, uint64_t now)
{
    const struct piece *piece = piece_of((int)c->next_event, (int)c->events);
    char *at = c->out + c->out_bytes;
    at += sprintf(at, "%x\r\n", (unsigned)piece->length);
    memcpy(at, piece->text, (size_t)piece->length);
    if (piece->nonce_at >= 0)
        memcpy(at + piece->nonce_at, c->nonce, NONCE_DIGITS);
    if (piece->index_at >= 0)
        put_digits(at + piece->index_at, INDEX_DIGITS, c->next_event);
    put_digits(at + piece->stamp_at, STAMP_DIGITS, now);
    at += piece->length;
    *at++ = '\r';
    *at++ = '\n';
    c->out_bytes = (int)(at - c->out);
    c->next_event++;
}

/* Write the next burst of a stream that is due, and whose `out` is empty. */
static void write_burst(struct conn *c, uint64_t now)
{
    c->due += c->gap_us * 1000;
    for (uint64_t i = 0; i < c->burst && c->next_event < c->events; i++)
        add_event(c, now);
    if (c->next_event == c->events) {
        memcpy(c->out + c->out_bytes, "0\r\n\r\n", 5);
        c->out_bytes += 5;
        c->state = WRITING;
        stats.open_streams--;
    }
    flush(c);
}

static void start_stream(struct conn *c)
{
    c->state = STREAMING;
    stats.open_streams++;
    c->out_bytes = sprintf(c->out, "HTTP/1.1 200 OK\r\n" ANSWER_HEADERS
                           "Content-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
                           "Transfer-Encoding: chunked\r\n\r\n");
    uint64_t now = now_ns();
    c->next_event = 0;
    add_event(c, now);
    c->due = now + c->gap_us * 1000;
    c->held = c->hold;
}

static void let_go(void)
{
    uint64_t now = now_ns(), held = 0, started = 0;
    for (int fd = 0; fd < MAX_FDS; fd++)
        held += conns[fd] && conns[fd]->held;
    for (int fd = 0; fd < MAX_FDS; fd++) {
        struct conn *c = conns[fd];
        if (!c || !c->held)
            continue;
        c->held = false;
        c->due = now + c->gap_us * 1000 * ++started / held;
        if (!c->out_bytes)
            resume(c);
    }
}

static void finish_request(struct conn *c)
{
    stats.requests++;
    c->head_bytes = 0;
    if (!c->complaint && c->body_at != c->size)
        c->complaint = "the body is not as long as size says";
    if (c->complaint) {
        char body[256];
        int n = snprintf(body, sizeof body,
                         "{\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\",\"message\":\"%s\"}}",
                         c->complaint);
        stats.bad++;
        fprintf(stderr, "upstream: 400, %s\n", c->complaint);
        answer(c, "400 Bad Request", body, (size_t)n);
    } else if (c->events) {
        start_stream(c);
    } else {
        struct piece plain = pieces[PLAIN];
        memcpy(plain.text + plain.nonce_at, c->nonce, NONCE_DIGITS);
        answer(c, "200 OK", plain.text, (size_t)plain.length);
    }
}

/* ---- requests ---- */

static const struct body *body_for(size_t size, bool stream)
{
    for (int i = 0; i < body_count; i++)
        if (bodies[i].size == size && bodies[i].stream == stream)
            return &bodies[i];
    if (body_count == sizeof bodies / sizeof *bodies)
        die("more sizes of body than the table holds");
    bodies[body_count] = (struct body){.size = size, .stream = stream, .bytes = make_body(size, stream)};
    return &bodies[body_count++];
}

static void check_body(struct conn *c, const char *data, size_t length)
{
    uint64_t at = c->body_at;
    c->body_at += length;
    if (c->complaint)
        return;
    if (c->body_at > c->size) {
        c->complaint = "the body is longer than size says";
        return;
    }
    const char *expected = c->body->bytes;
    size_t i = 0;
    while (i < length) {
        size_t n = length - i;
        uint64_t place = at + i;
        if (place < NONCE_AT) { /* up to the nonce */
            n = n < NONCE_AT - place ? n : (size_t)(NONCE_AT - place);
        } else if (place < NONCE_AT + NONCE_DIGITS) {
            n = n < NONCE_AT + NONCE_DIGITS - place ? n : (size_t)(NONCE_AT + NONCE_DIGITS - place);
            memcpy(c->nonce + (place - NONCE_AT), data + i, n);
            i += n;
            continue;
        }
        if (memcmp(expected + place, data + i, n)) {
            c->complaint = "the body was changed on its way";
            return;
        }
        i += n;
    }
}

static bool query_number(const char *query, const char *name, uint64_t *value)
{
    size_t n = strlen(name);
    for (const char *p = query; p; p = strchr(p, '&') ? strchr(p, '&') + 1 : NULL)
        if (!strncmp(p, name, n) && p[n] == '=') {
            char *end;
            *value = strtoull(p + n + 1, &end, 10);
            return end != p + n + 1 && (*end == '&' || !*end);
        }
    *value = 0;
    return true;
}

static bool is_header(const char *line, const char *name)
{
    size_t n = strlen(name);
    return !strncasecmp(line, name, n) && line[n] == ':';
}

static const char *value_of(const char *line)
{
    const char *p = strchr(line, ':') + 1;
    return p + strspn(p, " \t");
}

/* `head` ends in CRLF CRLF, which is cut off here.  False where the connection cannot go on. */
static bool parse_head(struct conn *c)
{
    c->complaint = NULL;
    c->chunked = false;
    c->dechunk = (struct dechunk){0};
    c->body_left = c->body_at = 0;
    c->size = c->events = c->gap_us = c->burst = c->hold = 0;
    bool has_length = false, has_key = false, has_version = false, is_json = false;

    char *line = c->head;
    char *next = strstr(line, "\r\n");
    *next = 0;
    char *method_end = strchr(line, ' ');
    char *target_end = method_end ? strchr(method_end + 1, ' ') : NULL;
    if (!target_end || strcmp(target_end, " HTTP/1.1")) {
        fprintf(stderr, "upstream: not a request line: %.100s\n", line);
        return false;
    }
    *method_end = *target_end = 0;
    char *method = line, *target = method_end + 1;
    for (line = next + 2; *line; line = next + 2) {
        next = strstr(line, "\r\n");
        *next = 0;
        const char *colon = strchr(line, ':');
        if (!colon || colon == line) {
            fprintf(stderr, "upstream: not a header line: %.100s\n", line);
            return false;
        }
        if (is_header(line, "content-length")) {
            char *end;
            c->body_left = strtoull(value_of(line), &end, 10);
            if (*end || has_length) {
                fprintf(stderr, "upstream: a wrong or second Content-Length\n");
                return false;
            }
            has_length = true;
        } else if (is_header(line, "transfer-encoding")) {
            if (strcasecmp(value_of(line), "chunked")) {
                fprintf(stderr, "upstream: Transfer-Encoding: %.50s\n", value_of(line));
                return false;
            }
            c->chunked = true;
        } else if (is_header(line, "x-api-key")) {
            has_key = !strcmp(value_of(line), API_KEY);
        } else if (is_header(line, "anthropic-version")) {
            has_version = !strcmp(value_of(line), "2023-06-01");
        } else if (is_header(line, "content-type")) {
            is_json = !strcmp(value_of(line), "application/json");
        }
    }
    if (c->chunked && has_length) {
        fprintf(stderr, "upstream: both Content-Length and Transfer-Encoding\n");
        return false;
    }

    c->state = BODY;
    if (!strcmp(method, "GET") && (!strcmp(target, "/stats") || !strcmp(target, "/go"))) {
        if (!strcmp(target, "/go"))
            let_go();

        char body[256];
        stats.accepted--; /* who asks is not counted, and asks but once a connection */
        int n = snprintf(body, sizeof body,
                         "{\"requests\":%" PRIu64 ",\"bad\":%" PRIu64 ",\"open_streams\":%" PRIu64
                         ",\"accepted\":%" PRIu64 ",\"broken\":%" PRIu64 "}",
                         stats.requests, stats.bad, stats.open_streams, stats.accepted, stats.broken);
        c->head_bytes = 0;
        answer(c, "200 OK", body, (size_t)n);
        return true;
    }
    static const char path[] = "/v1/messages?";
    const char *query = target + sizeof path - 1;
    if (strcmp(method, "POST") || strncmp(target, path, sizeof path - 1))
        c->complaint = "not POST /v1/messages";
    else if (!query_number(query, "size", &c->size) || !query_number(query, "events", &c->events) ||
             !query_number(query, "gap_us", &c->gap_us) || !query_number(query, "burst", &c->burst) ||
             !query_number(query, "hold", &c->hold))
        c->complaint = "the query is not understood";
    else if (c->size < MIN_BODY || c->size > MAX_BODY)
        c->complaint = "size is out of bounds";
    else if (c->events && (c->events < MIN_EVENTS || c->events > MAX_EVENTS || !c->burst || c->burst > MAX_BURST))
        c->complaint = "events or burst is out of bounds";
    else if (!has_key || !has_version || !is_json)
        c->complaint = "a header was lost or changed on its way";
    else
        c->body = body_for(c->size, c->events > 0);
    if (!c->chunked && !c->body_left)
        finish_request(c);
    return true;
}

/* Take what has arrived.  False where the connection is gone (and closed). */
static bool feed(struct conn *c, const char *data, size_t length)
{
    while (length) {
        size_t taken = 0;
        if (c->state == HEAD) {
            size_t had = (size_t)c->head_bytes, room = sizeof c->head - 1 - had;
            size_t n = length < room ? length : room;
            memcpy(c->head + had, data, n);
            c->head[had + n] = 0;
            char *end = strstr(c->head + (had > 3 ? had - 3 : 0), "\r\n\r\n");
            if (!end && n == room) {
                fprintf(stderr, "upstream: a head of more than %d bytes\n", MAX_HEAD);
                close_conn(c);
                return false;
            }
            c->head_bytes = (int)(had + n);
            taken = end ? (size_t)(end + 4 - c->head) - had : n;
            if (end) {
                end[2] = 0;
                if (!parse_head(c)) {
                    close_conn(c);
                    return false;
                }
            }
        } else if (c->state == BODY && c->chunked) {
            size_t bytes;
            ssize_t n = dechunk(&c->dechunk, data, length, &bytes);
            if (n < 0) {
                fprintf(stderr, "upstream: malformed chunks\n");
                close_conn(c);
                return false;
            }
            taken = (size_t)n;
            check_body(c, data + taken - bytes, bytes);
            if (c->dechunk.state == CHUNKS_DONE)
                finish_request(c);
        } else if (c->state == BODY) {
            taken = length < c->body_left ? length : (size_t)c->body_left;
            check_body(c, data, taken);
            c->body_left -= taken;
            if (!c->body_left)
                finish_request(c);
        } else {
            fprintf(stderr, "upstream: a request before the answer to the last one has ended\n");
            close_conn(c);
            return false;
        }
        data += taken;
        length -= taken;
        if (c->state > BODY && !flush(c))
            return false;
    }
    return true;
}

static void read_from(struct conn *c)
{
    ssize_t n = recv(c->fd, scratch, sizeof scratch, 0);
    if (n > 0)
        feed(c, scratch, (size_t)n);
    else if (n == 0 || (errno != EAGAIN && errno != EINTR))
        close_conn(c);
}

static void accept_all(int listener)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
            continue;
        if (fd < 0 && errno == EAGAIN)
            return;
        if (fd < 0 || fd >= MAX_FDS)
            die("upstream: accept: %s", fd < 0 ? strerror(errno) : "too many connections");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        struct conn *c = malloc(sizeof *c);
        if (!c)
            die("out of memory");
        /* not calloc: `head` and `out` need no zeros, and are large */
        c->fd = fd;
        c->state = HEAD;
        c->wants_write = c->held = c->ready = false;
        c->heap_at = -1;
        c->head_bytes = c->out_at = c->out_bytes = 0;
        c->gap_us = 0;
        conns[fd] = c;
        stats.accepted++;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
            die("epoll_ctl: %s", strerror(errno));
    }
}

static void write_due(void)
{
    uint64_t now = now_ns();
    while (heap_size && heap[0]->due <= now) {
        struct conn *c = heap[0];
        unschedule(c);
        write_burst(c, now_ns());
    }
}

static void write_ready(void)
{
    /* a stream that goes on puts itself on the list again, for the next turn; one that closes is set to NULL */
    static struct conn *turn[MAX_FDS];
    int count = ready_count;
    memcpy(turn, ready_list, (size_t)count * sizeof *turn);
    ready_count = 0;
    for (int i = 0; i < count; i++)
        if (turn[i]) {
            turn[i]->ready = false;
            write_burst(turn[i], now_ns());
        }
}

int main(int argc, char **argv)
{
    if (argc != 2)
        die("usage: upstream PORT");
    raise_nofile();
    signal(SIGPIPE, SIG_IGN);
    make_pieces();

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4096) < 0)
        die("upstream: cannot listen on 127.0.0.1:%s: %s", argv[1], strerror(errno));

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    event.data.fd = timer_fd;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event);
    puts("ready");
    fflush(stdout);

    for (;;) {
        static struct epoll_event events[256];
        set_timer();
        int n = epoll_wait(epoll_fd, events, 256, ready_count ? 0 : -1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait: %s", strerror(errno));
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                accept_all(listener);
            } else if (fd == timer_fd) {
                uint64_t expirations;
                if (read(timer_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN)
                    die("timerfd: %s", strerror(errno));
            } else if (conns[fd]) {
                if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                    read_from(conns[fd]);
                if (conns[fd] && (events[i].events & EPOLLOUT))
                    flush(conns[fd]);
            }
        }
        write_due();
        write_ready();
    }
}
