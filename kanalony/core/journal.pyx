# cython: language_level=3, boundscheck=False, wraparound=False
"""Journal blocks in a shared mapping: append, hand over, free; and the scan for records that a crash left.

docs/segment-format.md, section 4, has the layout. Every method runs to its end under the GIL: the GIL is the only lock
between the serving threads, which append, and the sealer thread, which takes full blocks and frees them. Two steps may
let go of it, and both come last, when the record is complete: waking the sealer and syncing.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

cdef extern from "Python.h":
    PyObject *PyTuple_GET_ITEM(object, Py_ssize_t)
    Py_ssize_t PyTuple_GET_SIZE(object)
    int PyUnicode_KIND(object)
    int PyUnicode_1BYTE_KIND
    void *PyUnicode_DATA(object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)

cdef extern from "sys/mman.h":
    int msync(void *addr, size_t length, int flags) nogil
    int MS_SYNC

from kanalony.core.headers cimport (
    ACK_SYNCED, ACK_WRITTEN, FIELD_COUNT, JOURNAL_BLOCK_UNIT, JOURNAL_HEADER, JOURNAL_MAX_BLOCKS, JOURNAL_WATERMARK_A,
    JOURNAL_WATERMARK_B, RECORD_LENGTH, RECORD_RECEIVED_AT, crc32c_setup, extend_crc32c, get_u32, put_u32, put_u64, record,
    record_commit, record_find, record_read, record_seed, record_size, record_write, span,
)

crc32c_setup()

HEADER_SIZE = JOURNAL_HEADER
WATERMARK_OFFSETS = (JOURNAL_WATERMARK_A, JOURNAL_WATERMARK_B)
BLOCK_UNIT = JOURNAL_BLOCK_UNIT
MAX_BLOCKS = JOURNAL_MAX_BLOCKS
LENGTH_OFFSET = RECORD_LENGTH
RECEIVED_AT_OFFSET = RECORD_RECEIVED_AT
ACK_LEVELS = ("written", "synced")
assert (ACK_WRITTEN, ACK_SYNCED) == (0, 1)  # their places in ACK_LEVELS


cdef inline int _take_span(object value, span *out) except -1:
    """Points a span at the value's own bytes. The caller must hold a reference to the value while the span is in use."""
    if value is None:
        out.data = NULL
        return 0
    if type(value) is str:
        if PyUnicode_KIND(value) != PyUnicode_1BYTE_KIND:
            raise ValueError("a WSGI string has characters beyond latin-1; the server breaks PEP 3333")
        out.data = <const uint8_t *>PyUnicode_DATA(value)
        length = PyUnicode_GET_LENGTH(value)
    elif type(value) is bytes:
        out.data = <const uint8_t *>PyBytes_AS_STRING(value)
        length = PyBytes_GET_SIZE(value)
    else:
        raise TypeError(f"a field of a request is str, bytes or None, not {type(value).__name__}")
    if length == 0:
        out.data = NULL
    elif length > 0x7FFFFFFF:
        raise ValueError(f"a field of {length:,} bytes exceeds 2^31 - 1")
    else:
        out.size = <uint32_t>length
    return 0


cdef inline int _take_fields(tuple values, span *fields, Py_ssize_t first) except -1:
    cdef Py_ssize_t count = PyTuple_GET_SIZE(values), i
    if count > FIELD_COUNT - first:
        raise TypeError(f"{first + count} values for the {FIELD_COUNT} fields of a request")
    for i in range(first, FIELD_COUNT):
        fields[i].data = NULL
    for i in range(count):
        _take_span(<object>PyTuple_GET_ITEM(values, i), &fields[first + i])
    return 0


cdef inline int64_t _microseconds(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <int64_t>now.tv_sec * 1000000 + now.tv_nsec // 1000


cdef struct block:
    uint32_t used
    uint32_t count
    uint64_t first_sequence
    int64_t opened_at  # monotonic µs


cdef class Blocks:
    cdef object _mapping
    cdef Py_buffer _view
    cdef uint8_t *_base
    cdef uint32_t _block_size, _block_count, _seed
    cdef uint64_t _next_sequence
    cdef block _blocks[JOURNAL_MAX_BLOCKS]
    # A stack of free blocks, so that the block used last, which is still in the processor's cache, is used next. A queue
    # of full blocks.
    cdef uint32_t _free[JOURNAL_MAX_BLOCKS]
    cdef uint32_t _full[JOURNAL_MAX_BLOCKS]
    cdef int _free_count, _full_first, _full_count
    cdef int _active  # -1: none
    cdef int _watermark_slot
    cdef bint _synced, _closed
    cdef object _on_full

    def __cinit__(self, mapping, uint32_t block_size, uint32_t block_count, uint64_t worker_id, bint synced, on_full):
        if not 1 <= block_count <= MAX_BLOCKS or block_size < BLOCK_UNIT or block_size % BLOCK_UNIT:
            raise ValueError(
                f"{block_count} blocks of {block_size} bytes: 1 to {MAX_BLOCKS} blocks, each a multiple of {BLOCK_UNIT} bytes"
            )
        PyObject_GetBuffer(mapping, &self._view, PyBUF_WRITABLE)
        self._mapping = mapping
        if <uint64_t>self._view.len != JOURNAL_HEADER + <uint64_t>block_size * block_count:
            raise ValueError(f"a mapping of {self._view.len:,} bytes does not fit {block_count} blocks of {block_size:,} bytes")
        self._base = <uint8_t *>self._view.buf
        self._block_size = block_size
        self._block_count = block_count
        self._seed = record_seed(worker_id)
        self._next_sequence = 1
        self._free_count = block_count
        for i in range(block_count):
            self._free[i] = block_count - 1 - i
        self._full_first = self._full_count = 0
        self._active = -1
        self._synced = synced
        self._on_full = on_full

    def __dealloc__(self):
        if self._mapping is not None:
            PyBuffer_Release(&self._view)

    cdef inline uint8_t *_start(self, int index) noexcept:
        return self._base + JOURNAL_HEADER + <size_t>index * self._block_size

    cdef void _queue_active(self) noexcept:
        """Queues the active block for the sealer.

        The caller calls `_on_full` afterwards. That runs Python code, so other threads may change everything meanwhile.
        """
        self._full[(self._full_first + self._full_count) % self._block_count] = self._active
        self._full_count += 1
        self._active = -1

    cdef bint _open_block(self) noexcept:
        """Makes a free block the active one. False when no block is free."""
        if self._free_count == 0:
            return False
        self._free_count -= 1
        self._active = self._free[self._free_count]
        cdef block *b = &self._blocks[self._active]
        b.used = b.count = 0
        b.first_sequence = self._next_sequence
        b.opened_at = _microseconds(CLOCK_MONOTONIC)
        put_u32(self._start(self._active), 0)
        return True

    def append(self, method, path, remote_addr, forwarded_for, user_agent, referer, query, body=None, content_type=None,
               content_encoding=None, *others):
        cdef span fields[FIELD_COUNT]
        _take_span(method, &fields[0])
        _take_span(path, &fields[1])
        _take_span(remote_addr, &fields[2])
        _take_span(forwarded_for, &fields[3])
        _take_span(user_agent, &fields[4])
        _take_span(referer, &fields[5])
        _take_span(query, &fields[6])
        _take_span(body, &fields[7])
        _take_span(content_type, &fields[8])
        _take_span(content_encoding, &fields[9])
        _take_fields(others, fields, 10)
        cdef size_t size = record_size(fields)
        if size > self._block_size:
            raise OverflowError(f"a request of {size:,} bytes exceeds a journal block of {self._block_size:,} bytes")
        if self._closed:
            return 0
        cdef bint queued = self._active >= 0 and self._block_size - self._blocks[self._active].used < size
        if queued:
            self._queue_active()
        if self._active < 0 and not self._open_block():
            if queued:
                self._on_full()
            return 0
        cdef block *b = &self._blocks[self._active]
        cdef uint8_t *dst = self._start(self._active) + b.used
        cdef int64_t now = _microseconds(CLOCK_REALTIME)
        if self._block_size - b.used - size >= 4:
            put_u32(dst + size, 0)
        record_write(dst, size, self._seed, self._next_sequence, now, fields)
        record_commit(dst)  # survives the death of this process from here on
        b.used += size
        b.count += 1
        self._next_sequence += 1
        if queued:
            self._on_full()
        if self._synced:
            self._sync(dst, size)  # disk write: survives power loss from here on
        return now

    cdef int _sync(self, uint8_t *start, size_t size) except -1:
        cdef size_t offset = <size_t>(start - self._base) % JOURNAL_BLOCK_UNIT
        cdef int failed
        with nogil:
            failed = msync(start - offset, size + offset, MS_SYNC)
        if failed:
            raise OSError(errno, "the journal could not be written to the disk")
        return 0

    def hand_over(self, int64_t age):
        if self._active >= 0 and self._blocks[self._active].count and (
            _microseconds(CLOCK_MONOTONIC) - self._blocks[self._active].opened_at >= age
        ):
            self._queue_active()
            self._on_full()

    def refuse(self):
        self._closed = True

    def release(self):
        self._closed = True
        self._active = -1
        self._full_count = 0
        if self._mapping is not None:
            PyBuffer_Release(&self._view)
            self._mapping = None

    def full_block(self, int position):
        if not 0 <= position < self._full_count:
            return None
        cdef uint32_t index = self._full[(self._full_first + position) % self._block_count]
        start = JOURNAL_HEADER + <size_t>index * self._block_size
        return memoryview(self._mapping)[start:start + self._blocks[index].used], self._blocks[index].first_sequence

    def free(self, int count):
        cdef uint32_t index = 0
        cdef uint8_t *slot = self._base + (JOURNAL_WATERMARK_B if self._watermark_slot else JOURNAL_WATERMARK_A)
        if not 0 < count <= self._full_count:
            raise IndexError(f"{count} blocks to free, {self._full_count} full")
        index = self._full[(self._full_first + count - 1) % self._block_count]
        # Between the two stores this slot is invalid; the other slot still has the previous watermark.
        put_u64(slot, self._blocks[index].first_sequence + self._blocks[index].count - 1)
        put_u32(slot + 8, extend_crc32c(0, slot, 8))
        self._watermark_slot ^= 1
        while count:
            self._free[self._free_count] = self._full[self._full_first]
            self._free_count += 1
            self._full_first = (self._full_first + 1) % self._block_count
            self._full_count -= 1
            count -= 1

    @property
    def accepted(self):
        return self._next_sequence - 1

    @property
    def full_blocks(self):
        return self._full_count

    @property
    def free_blocks(self):
        return self._free_count


def build_record(uint64_t worker_id, uint64_t sequence, uint64_t received_at, *values):
    cdef span fields[FIELD_COUNT]
    _take_fields(values, fields, 0)
    cdef size_t size = record_size(fields)
    content = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t *dst = <uint8_t *>PyBytes_AS_STRING(content)
    record_write(dst, size, record_seed(worker_id), sequence, received_at, fields)
    record_commit(dst)
    return content


def scan_block(buffer, size_t start, size_t end, uint64_t worker_id, uint64_t watermark):
    cdef Py_buffer view
    cdef const uint8_t *base
    cdef size_t position, run_start, found
    cdef uint64_t run_first, run_count
    cdef uint32_t seed = record_seed(worker_id)
    cdef record r
    cdef bint valid
    cdef list runs = [], damaged = []
    # Bytes made for the purpose make the search read the same bytes again and again; this bounds it to milliseconds.
    cdef size_t budget = 64 * (end - start)
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        if not start <= end <= <size_t>view.len:
            raise ValueError(f"block [{start}, {end}) is not within {view.len} bytes")
        base = <const uint8_t *>view.buf
        position = start
        while position < end:
            # A run: adjacent valid records, all stale or all pending with consecutive numbers.
            run_start = position
            run_first = run_count = 0
            with nogil:
                while True:
                    valid = record_read(base + position, end - position, seed, &r)
                    if not valid:
                        break
                    if r.sequence <= watermark:
                        if run_count:
                            break
                        run_start = position + r.length
                    elif run_count == 0:
                        run_first = r.sequence
                    elif r.sequence != run_first + run_count:
                        break
                    if r.sequence > watermark:
                        run_count += 1
                    position += r.length
            if run_count:
                runs.append((run_start, position, run_first, run_count))
            if valid:
                continue
            with nogil:
                found = record_find(base, position, end, seed, watermark, &budget, &r)
            if found < end:
                damaged.append((position, found))
            elif end - position >= 4 and get_u32(base + position) != 0:
                damaged.append((position, end))
            position = found
    finally:
        PyBuffer_Release(&view)
    return runs, damaged
