/* The load client of the benchmarks: HTTP/1.1 over kept connections on epoll, one thread.
 *
 *     load --port PORT [--connections N] [--size BYTES] [--events N --gap-us G --burst B] [--every-us U]
 *          [--warmup SECONDS] [--seconds SECONDS] [--pid PID]... [--hold]
 *
 * Each connection to 127.0.0.1:PORT sends a POST with a body of BYTES, reads the whole answer, and begins again.
 * What happens in the window (--seconds, after --warmup) is measured; what is then in flight is read to its end.
 *
 * With --every-us the requests are paced: one is due every U microseconds, by an absolute schedule, on whichever
 * connection is idle.  Where none is, it waits for one, and its time counts from when it was due.
 *
 * With --hold the streams are to be longer than the window, and pause after their first event until the upstream is
 * told to go on.  The client opens all of them, writes "open" when each has delivered its first event, waits for the
 * line "go", measures, writes "window", waits for the line "end", and leaves in the middle of all streams.
 *
 * Every byte of every answer is compared with what common.h says it is.  The result is one line of JSON:
 *     seconds      the window
 *     answers      complete answers in it
 *     events       events in it (a plain answer is one)
 *     cpu_seconds  what the processes of --pid have used in it, each by itself and in their order
 *     ttfb_ms      from before the first byte of a request is sent (paced: from when it was due) to when the first
 *                  event (or the answer) is in
 *     delay_ms     of each later event with a gap: from the upstream's stamp to when it is in
 *     errors       what was not as it had to be; the first ones are on stderr, and the exit status is 1
 */
#define _GNU_SOURCE
#include "common.h"

#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    MAX_PIDS = 64,
    MAX_ERRORS = 10,     /* then the run is over */
    RAMP = 32,           /* connections that are on their way to their first event at once, while opening */
    STALL_SECONDS = 10,  /* without one byte from anyone: an error */
    MAX_FRONT = 2048,
};

/* In place of a connection's number. */
#define STDIN_READY UINT32_MAX
#define TIMER_READY (UINT32_MAX - 1)

enum state { CONNECTING, SENDING, HEAD, BODY, IDLE };

struct conn {
    int fd;
    enum state state;
    bool wants_write;
    bool opened; /* has delivered its first event */

    uint64_t began; /* when the request was */
    size_t sent;
    char nonce[NONCE_DIGITS];
    char front[MAX_FRONT]; /* the request up to and including the nonce; what follows is the same for all */

    char head[MAX_HEAD];
    int head_bytes;
    bool chunked;
    struct dechunk dechunk;
    uint64_t body_left;
    int index; /* of the event that is expected next */
    char part[MAX_EVENT_BYTES];
    int part_bytes; /* of an event that came in pieces */
};

struct samples {
    uint64_t *values;
    size_t count, room;
};

enum phase { OPENING, WAITING, WARMUP, WINDOW, FINISHING, HOLDING, DONE };

static int port, connections = 1, size = 1024, events, gap_us, burst = 1, every_us;
static double warmup, seconds = 1;
static bool hold;
static clockid_t cpu_clocks[MAX_PIDS];
static int cpu_clock_count;

static enum phase phase = OPENING;
static struct conn **conns; /* by number, not by descriptor; NULL: not open */
static int epoll_fd, timer_fd;
static uint64_t next_due; /* of a paced request */
static int opening, opened, in_flight;
static uint64_t errors, answers, events_seen, last_progress;
static struct samples ttfb, delay;
static const char *body;
static char front[MAX_FRONT];
static size_t front_bytes;
static char scratch[SCRATCH];

static void add_sample(struct samples *samples, uint64_t value)
{
    if (samples->count == samples->room) {
        samples->room = samples->room ? 2 * samples->room : 4096;
        samples->values = realloc(samples->values, samples->room * sizeof *samples->values);
        if (!samples->values)
            die("out of memory");
    }
    samples->values[samples->count++] = value;
}

/* ---- connections ---- */

static void drop(int number)
{
    struct conn *c = conns[number];
    if (!c->opened)
        opening--;
    else
        opened--;
    if (c->state != IDLE)
        in_flight--;
    close(c->fd);
    free(c);
    conns[number] = NULL;
}

/* Something is not as it had to be: say it, count it, and close the connection.  Always false. */
__attribute__((format(printf, 2, 3))) static bool fail(int number, const char *format, ...)
{
    if (errors++ < 5) {
        va_list arguments;
        va_start(arguments, format);
        fprintf(stderr, "load: ");
        vfprintf(stderr, format, arguments);
        fputc('\n', stderr);
        va_end(arguments);
    }
    drop(number);
    return false;
}

static void watch(int number, bool writing)
{
    struct conn *c = conns[number];
    if (c->wants_write == writing)
        return;
    c->wants_write = writing;
    struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.u32 = (uint32_t)number};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event) < 0)
        die("epoll_ctl: %s", strerror(errno));
}

static bool send_request(int number)
{
    struct conn *c = conns[number];
    size_t rest = (size_t)size - NONCE_AT - NONCE_DIGITS;
    while (c->sent < front_bytes + rest) {
        struct iovec parts[2] = {{0}, {.iov_base = (char *)body + NONCE_AT + NONCE_DIGITS, .iov_len = rest}};
        int first = 0;
        if (c->sent < front_bytes) {
            parts[0] = (struct iovec){.iov_base = c->front + c->sent, .iov_len = front_bytes - c->sent};
        } else {
            size_t done = c->sent - front_bytes;
            parts[1].iov_base = (char *)parts[1].iov_base + done;
            parts[1].iov_len = rest - done;
            first = 1;
        }
        ssize_t n = writev(c->fd, parts + first, 2 - first);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            watch(number, true);
            return true;
        }
        if (n < 0)
            return fail(number, "after %zu bytes of a request: %s", c->sent, strerror(errno));
        c->sent += (size_t)n;
    }
    watch(number, false);
    c->state = HEAD;
    return true;
}

/* Send the next request, which counts from `began`. */
static bool begin(int number, uint64_t began)
{
    static uint64_t made;
    struct conn *c = conns[number];
    if (c->state == IDLE)
        in_flight++;
    c->state = SENDING;
    c->sent = 0;
    c->head_bytes = 0;
    c->index = 0;
    c->part_bytes = 0;
    put_nonce(c->nonce, ((uint64_t)getpid() << 40) + ++made);
    memcpy(c->front, front, front_bytes);
    memcpy(c->front + front_bytes - NONCE_DIGITS, c->nonce, NONCE_DIGITS);
    c->began = began;
    return send_request(number);
}

static void open_one(int number)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("load: socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    struct conn *c = malloc(sizeof *c);
    if (!c)
        die("out of memory");
    c->fd = fd;
    c->state = CONNECTING;
    c->wants_write = true;
    c->opened = false;
    c->sent = 0;
    conns[number] = c;
    opening++;
    in_flight++;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.u32 = (uint32_t)number};
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS)
        fail(number, "connect to port %d: %s", port, strerror(errno));
    else if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl: %s", strerror(errno));
}

/* ---- answers ---- */

static const char *find_header(const char *head, const char *name)
{
    size_t n = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (!strncasecmp(line, name, n) && line[n] == ':')
            return line + n + 1 + strspn(line + n + 1, " \t");
    }
    return NULL;
}

/* Whether the value is `wanted`, to the end of its line or to a parameter. */
static bool is_value(const char *value, const char *wanted)
{
    size_t n = strlen(wanted);
    return value && !strncasecmp(value, wanted, n) && (value[n] == '\r' || value[n] == ';');
}

static bool parse_head(int number)
{
    struct conn *c = conns[number];
    if (strncmp(c->head, "HTTP/1.1 200 ", 13))
        return fail(number, "answered: %.300s", c->head);
    const char *length = find_header(c->head, "content-length");
    const char *coding = find_header(c->head, "transfer-encoding");
    if (!length == !coding)
        return fail(number, "neither one of Content-Length and Transfer-Encoding: %.300s", c->head);
    if (coding && !is_value(coding, "chunked"))
        return fail(number, "Transfer-Encoding: %.30s", coding);
    if (is_value(find_header(c->head, "connection"), "close"))
        return fail(number, "the connection is not kept");
    if (!is_value(find_header(c->head, "content-type"), events ? "text/event-stream" : "application/json"))
        return fail(number, "a wrong Content-Type");
    if (!is_value(find_header(c->head, "request-id"), "req_011CbenchABCDEFGHJKLMNPQ"))
        return fail(number, "the upstream's request-id was lost or changed");
    c->chunked = coding;
    c->dechunk = (struct dechunk){0};
    c->body_left = length ? strtoull(length, NULL, 10) : 0;
    c->state = BODY;
    return true;
}

/* One whole event (or the plain answer) against what it has to be. */
static bool check_event(int number, const struct piece *piece, const char *data, uint64_t now)
{
    struct conn *c = conns[number];
    static const int lengths[] = {NONCE_DIGITS, INDEX_DIGITS, STAMP_DIGITS};
    const int places[] = {piece->nonce_at, piece->index_at, piece->stamp_at};
    int at = 0;
    for (int i = 0; i < 3; i++) /* in every piece, what varies comes in this order */
        if (places[i] >= 0) {
            if (memcmp(data + at, piece->text + at, (size_t)(places[i] - at)))
                return fail(number, "event %d was changed on its way: %.*s", c->index, piece->length, data);
            at = places[i] + lengths[i];
        }
    if (memcmp(data + at, piece->text + at, (size_t)(piece->length - at)))
        return fail(number, "event %d was changed on its way: %.*s", c->index, piece->length, data);

    uint64_t index, stamp = 0;
    if (piece->nonce_at >= 0 && memcmp(data + piece->nonce_at, c->nonce, NONCE_DIGITS))
        return fail(number, "the answer to another request: %.*s", piece->length, data);
    if (piece->index_at >= 0 &&
        (!get_digits(data + piece->index_at, INDEX_DIGITS, &index) || index != (uint64_t)c->index))
        return fail(number, "event %d is out of order: %.*s", c->index, piece->length, data);
    if (piece->stamp_at >= 0 && (!get_digits(data + piece->stamp_at, STAMP_DIGITS, &stamp) || stamp > now))
        return fail(number, "event %d has a wrong stamp: %.*s", c->index, piece->length, data);

    if (phase == WINDOW) {
        events_seen++;
        if (c->index == 0)
            add_sample(&ttfb, now - c->began);
        else if (gap_us)
            add_sample(&delay, now - stamp);
    }
    if (!c->opened) {
        c->opened = true;
        opening--;
        opened++;
    }
    c->index++;
    return true;
}

static bool check_body(int number, const char *data, size_t length, uint64_t now)
{
    struct conn *c = conns[number];
    int total = events ? events : 1;
    while (length) {
        if (c->index == total)
            return fail(number, "%zu bytes after the last event", length);
        const struct piece *piece = piece_of(c->index, events);
        size_t wanted = (size_t)(piece->length - c->part_bytes);
        if (length < wanted || c->part_bytes) {
            size_t n = length < wanted ? length : wanted;
            memcpy(c->part + c->part_bytes, data, n);
            c->part_bytes += (int)n;
            data += n;
            length -= n;
            if (c->part_bytes < piece->length)
                return true;
            c->part_bytes = 0;
            if (!check_event(number, piece, c->part, now))
                return false;
        } else {
            if (!check_event(number, piece, data, now))
                return false;
            data += piece->length;
            length -= (size_t)piece->length;
        }
    }
    return true;
}

static bool finish(int number)
{
    struct conn *c = conns[number];
    int total = events ? events : 1;
    if (c->index != total || c->part_bytes)
        return fail(number, "the answer ended after %d of %d events", c->index, total);
    if (phase == WINDOW)
        answers++;
    c->state = IDLE;
    in_flight--;
    return true;
}

static bool feed(int number, const char *data, size_t length, uint64_t now)
{
    struct conn *c = conns[number];
    while (length) {
        if (c->state == HEAD) {
            size_t had = (size_t)c->head_bytes, room = sizeof c->head - 1 - had;
            size_t n = length < room ? length : room;
            memcpy(c->head + had, data, n);
            c->head[had + n] = 0;
            char *end = strstr(c->head + (had > 3 ? had - 3 : 0), "\r\n\r\n");
            c->head_bytes += (int)n;
            if (!end && n == room)
                return fail(number, "a head of more than %d bytes", MAX_HEAD);
            size_t taken = end ? (size_t)(end + 4 - c->head) - had : n;
            data += taken;
            length -= taken;
            if (end) {
                end[2] = 0;
                if (!parse_head(number))
                    return false;
            }
        } else if (c->state == BODY && c->chunked) {
            size_t bytes;
            ssize_t n = dechunk(&c->dechunk, data, length, &bytes);
            if (n < 0)
                return fail(number, "malformed chunks in event %d", c->index);
            if (!check_body(number, data + (size_t)n - bytes, bytes, now))
                return false;
            data += n;
            length -= (size_t)n;
            if (c->dechunk.state == CHUNKS_DONE && !finish(number))
                return false;
        } else if (c->state == BODY) {
            size_t n = length < c->body_left ? length : (size_t)c->body_left;
            if (!check_body(number, data, n, now))
                return false;
            c->body_left -= n;
            data += n;
            length -= n;
            if (!c->body_left && !finish(number))
                return false;
        } else {
            return fail(number, "%zu bytes after the answer: %.*s", length, length < 200 ? (int)length : 200, data);
        }
    }
    return true;
}

static void read_from(int number)
{
    struct conn *c = conns[number];
    ssize_t n = recv(c->fd, scratch, sizeof scratch, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n < 0) {
        fail(number, "in event %d: %s", c->index, strerror(errno));
        return;
    }
    if (n == 0) {
        fail(number, c->state == IDLE ? "an idle connection was closed" : "cut in event %d", c->index);
        return;
    }
    last_progress = now_ns();
    if (feed(number, scratch, (size_t)n, last_progress) && c->state == IDLE && phase < FINISHING && !every_us)
        begin(number, now_ns());
}

static void on_event(int number, uint32_t what)
{
    struct conn *c = conns[number];
    if (!c)
        return;
    if (c->state == CONNECTING) {
        int error = 0;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error});
        if (error)
            fail(number, "connect to port %d: %s", port, strerror(error));
        else
            begin(number, now_ns());
        return;
    }
    if (what & EPOLLOUT && c->state == SENDING && !send_request(number))
        return;
    if (what & (EPOLLIN | EPOLLHUP | EPOLLERR))
        read_from(number);
}

/* ---- pacing ---- */

static void start_pacing(uint64_t now)
{
    struct timespec gap = {.tv_sec = every_us / 1000000, .tv_nsec = every_us % 1000000 * 1000L};
    next_due = now + (uint64_t)every_us * 1000;
    struct itimerspec spec = {.it_value = {.tv_sec = (time_t)(next_due / 1000000000u),
                                           .tv_nsec = (long)(next_due % 1000000000u)},
                              .it_interval = gap};
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &spec, NULL) < 0)
        die("timerfd_settime: %s", strerror(errno));
}

/* Begin the requests that are due, as far as there are idle connections. */
static void begin_due(uint64_t now)
{
    for (int i = 0; i < connections && next_due <= now; i++)
        if (conns[i] && conns[i]->state == IDLE) {
            uint64_t due = next_due;
            next_due += (uint64_t)every_us * 1000;
            begin(i, due);
        }
}

/* ---- the run ---- */

static void read_cpu_clocks(double seconds[])
{
    for (int i = 0; i < cpu_clock_count; i++) {
        struct timespec t;
        if (clock_gettime(cpu_clocks[i], &t) < 0)
            die("load: a process of --pid has ended");
        seconds[i] = (double)t.tv_sec + (double)t.tv_nsec / 1e9;
    }
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, struct samples *samples)
{
    if (!samples->count) {
        printf(",\"%s\":null", name);
        return;
    }
    qsort(samples->values, samples->count, sizeof *samples->values, compare);
    size_t p99 = (samples->count * 99 + 99) / 100 - 1, p999 = (samples->count * 999 + 999) / 1000 - 1;
    printf(",\"%s\":{\"median\":%.6f,\"p99\":%.6f,\"p999\":%.6f,\"max\":%.6f,\"count\":%zu}", name,
           (double)samples->values[samples->count / 2] / 1e6, (double)samples->values[p99] / 1e6,
           (double)samples->values[p999] / 1e6, (double)samples->values[samples->count - 1] / 1e6, samples->count);
}

static void say(const char *word)
{
    puts(word);
    fflush(stdout);
}

/* A line from whoever has started us; anything but `word` (its end, for one) ends the run. */
static void expect(const char *word)
{
    char line[16] = "";
    ssize_t n = read(STDIN_FILENO, line, sizeof line - 1);
    if (n <= 0 || strncmp(line, word, strlen(word)))
        die("load: \"%s\" was expected on standard input", word);
}

static int number_argument(const char *name, const char *text, int low, int high)
{
    char *end;
    long value = strtol(text, &end, 10);
    if (end == text || *end || value < low || value > high)
        die("load: --%s is %d to %d, not %s", name, low, high, text);
    return (int)value;
}

static void parse_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"port", required_argument, 0, 'p'},     {"connections", required_argument, 0, 'c'},
        {"size", required_argument, 0, 's'},     {"events", required_argument, 0, 'e'},
        {"gap-us", required_argument, 0, 'g'},   {"burst", required_argument, 0, 'b'},
        {"every-us", required_argument, 0, 'y'}, {"warmup", required_argument, 0, 'w'},
        {"seconds", required_argument, 0, 't'},  {"pid", required_argument, 0, 'i'},
        {"hold", no_argument, 0, 'h'},           {0, 0, 0, 0},
    };
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (option) {
        case 'p': port = number_argument("port", optarg, 1, 65535); break;
        case 'c': connections = number_argument("connections", optarg, 1, MAX_FDS - 100); break;
        case 's': size = number_argument("size", optarg, MIN_BODY, MAX_BODY); break;
        case 'e': events = number_argument("events", optarg, MIN_EVENTS, MAX_EVENTS); break;
        case 'g': gap_us = number_argument("gap-us", optarg, 0, 60000000); break;
        case 'b': burst = number_argument("burst", optarg, 1, MAX_BURST); break;
        case 'y': every_us = number_argument("every-us", optarg, 1, STALL_SECONDS * 500000); break;
        case 'w': warmup = atof(optarg); break;
        case 't': seconds = atof(optarg); break;
        case 'h': hold = true; break;
        case 'i': {
            int pid = number_argument("pid", optarg, 1, 1 << 30);
            if (cpu_clock_count == MAX_PIDS || clock_getcpuclockid(pid, &cpu_clocks[cpu_clock_count++]))
                die("load: --pid %d: no such process, or too many", pid);
            break;
        }
        default: exit(2);
        }
    if (!port || optind != argc || (hold && every_us))
        die("usage: load --port PORT [options]; see the beginning of load.c");
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    if (raise_nofile() < connections + 16)
        die("load: the limit of open files is too low for %d connections", connections);
    signal(SIGPIPE, SIG_IGN);
    make_pieces();
    body = make_body((size_t)size, events > 0);
    char query[128] = "";
    if (events)
        snprintf(query, sizeof query, "&events=%d&gap_us=%d&burst=%d&hold=%d", events, gap_us, burst, hold);
    /* the headers of an SDK's request, in number and in size */
    front_bytes = (size_t)snprintf(front, sizeof front,
        "POST /v1/messages?size=%d%s HTTP/1.1\r\n"
        "Host: 127.0.0.1:%d\r\n"
        "Accept: application/json\r\n"
        "Accept-Encoding: gzip, deflate\r\n"
        "Connection: keep-alive\r\n"
        "User-Agent: Anthropic/Python 1.0.0\r\n"
        "X-Stainless-Lang: python\r\n"
        "X-Stainless-Package-Version: 1.0.0\r\n"
        "X-Stainless-OS: Linux\r\n"
        "X-Stainless-Arch: x64\r\n"
        "X-Stainless-Runtime: CPython\r\n"
        "X-Stainless-Runtime-Version: 3.13.0\r\n"
        "X-Stainless-Async: false\r\n"
        "x-stainless-retry-count: 0\r\n"
        "x-stainless-read-timeout: 600\r\n"
        "X-Api-Key: " API_KEY "\r\n"
        "anthropic-version: 2023-06-01\r\n"
        "Content-Type: application/json\r\n"
        "Content-Length: %d\r\n\r\n"
        "%.*s", size, query, port, size, NONCE_AT + NONCE_DIGITS, body);

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    conns = calloc((size_t)connections, sizeof *conns);
    if (!conns)
        die("out of memory");
    if (hold) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = STDIN_READY};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0)
            die("load: --hold wants a pipe as standard input");
    }
    if (every_us) {
        timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = TIMER_READY};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event) < 0)
            die("epoll_ctl: %s", strerror(errno));
    }

    const int ramp = every_us ? 1 : RAMP;
    uint64_t phase_end = 0, window_began = 0;
    double cpu_began[MAX_PIDS], cpu_ended[MAX_PIDS], window = 0;
    read_cpu_clocks(cpu_began);
    read_cpu_clocks(cpu_ended);
    last_progress = now_ns();
    while (phase != DONE) {
        if (phase < FINISHING && opened + opening < connections)
            for (int i = 0; i < connections && opening < ramp && errors < MAX_ERRORS; i++)
                if (!conns[i])
                    open_one(i);

        uint64_t now = now_ns();
        int timeout = 100;
        if (phase == WARMUP || phase == WINDOW) {
            int64_t left = (int64_t)(phase_end - now) / 1000000;
            timeout = left < 0 ? 0 : left < timeout ? (int)left : timeout;
        }
        static struct epoll_event ready[256];
        int n = epoll_wait(epoll_fd, ready, 256, timeout);
        if (n < 0 && errno != EINTR)
            die("epoll_wait: %s", strerror(errno));
        bool told = false;
        for (int i = 0; i < n; i++)
            if (ready[i].data.u32 == STDIN_READY) {
                told = true;
            } else if (ready[i].data.u32 == TIMER_READY) {
                uint64_t expirations;
                if (read(timer_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN)
                    die("timerfd: %s", strerror(errno));
            } else {
                on_event((int)ready[i].data.u32, ready[i].events);
            }

        now = now_ns();
        if (every_us && (phase == WARMUP || phase == WINDOW))
            begin_due(now);
        if (errors >= MAX_ERRORS || (hold && errors))
            break;
        if (phase != WAITING && phase != HOLDING && now - last_progress > STALL_SECONDS * 1000000000ull) {
            fprintf(stderr, "load: nothing has arrived for %d s; %d answers are open\n", STALL_SECONDS, in_flight);
            errors++;
            break;
        }
        switch (phase) {
        case OPENING:
            if (opened < connections)
                break;
            if (hold) {
                say("open");
                phase = WAITING;
            } else {
                phase = WARMUP;
                phase_end = now + (uint64_t)(warmup * 1e9);
                if (every_us)
                    start_pacing(now);
            }
            break;
        case WAITING:
            if (told)
                expect("go");
            last_progress = now;
            if (!told)
                break;
            phase = WARMUP;
            phase_end = now + (uint64_t)(warmup * 1e9);
            break;
        case WARMUP:
            if (now < phase_end)
                break;
            phase = WINDOW;
            window_began = now;
            phase_end = now + (uint64_t)(seconds * 1e9);
            read_cpu_clocks(cpu_began);
            break;
        case WINDOW:
            if (now < phase_end)
                break;
            read_cpu_clocks(cpu_ended);
            window = (double)(now - window_began) / 1e9;
            phase = hold ? HOLDING : FINISHING;
            if (hold)
                say("window");
            break;
        case FINISHING:
            if (!in_flight)
                phase = DONE;
            break;
        case HOLDING:
            if (told) {
                expect("end");
                phase = DONE;
            }
            break;
        case DONE:
            break;
        }
    }
    for (int i = 0; i < connections; i++)
        if (conns[i])
            drop(i);

    printf("{\"seconds\":%.6f,\"answers\":%" PRIu64 ",\"events\":%" PRIu64, window, answers, events_seen);
    printf(",\"cpu_seconds\":[");
    for (int i = 0; i < cpu_clock_count; i++)
        printf("%s%.6f", i ? "," : "", cpu_ended[i] - cpu_began[i]);
    printf("]");
    print_samples("ttfb_ms", &ttfb);
    print_samples("delay_ms", &delay);
    printf(",\"errors\":%" PRIu64 "}\n", errors);
    return errors ? 1 : 0;
}
