// Test doubles: a clock advanced by hand, a WebSocket, a storage, and frames of the server.

export class ManualClock {
  #now = 0;
  #nextId = 1;
  #timers = new Map();

  now = () => this.#now;
  random = () => 1;

  setTimeout = (callback, ms) => {
    this.#timers.set(this.#nextId, { at: this.#now + ms, callback });
    return this.#nextId++;
  };

  clearTimeout = (id) => void this.#timers.delete(id);

  /** Advance the time and run the timers that are due, in order. */
  advance(ms) {
    const end = this.#now + ms;
    for (;;) {
      const due = [...this.#timers].filter(([, timer]) => timer.at <= end);
      if (!due.length) break;
      const [id, timer] = due.sort(([, a], [, b]) => a.at - b.at)[0];
      this.#timers.delete(id);
      this.#now = timer.at;
      timer.callback();
    }
    this.#now = end;
  }
}

/** Return a WebSocket class for one test; `instances` holds its sockets, newest last. */
export function fakeWebSocket() {
  return class FakeWebSocket {
    static instances = [];
    sent = [];
    isClosed = false;

    constructor(url, protocols) {
      this.url = url;
      this.protocols = protocols;
      FakeWebSocket.instances.push(this);
    }

    send(text) {
      this.sent.push(JSON.parse(text));
    }

    close() {
      this.isClosed = true;
    }

    // Called by tests in the role of the server.

    accept() {
      this.onopen();
    }

    deliver(frame) {
      this.onmessage({ data: typeof frame === "string" ? frame : JSON.stringify(frame) });
    }

    drop(code = 1006) {
      this.onclose({ code });
    }
  };
}

/** A `Storage` that counts writes and can be full. */
export class FakeStorage {
  #values = new Map();
  isFull = false;
  numWrites = 0;

  getItem(key) {
    return this.#values.get(key) ?? null;
  }

  setItem(key, value) {
    if (this.isFull) throw new Error("QuotaExceededError");
    this.numWrites += 1;
    this.#values.set(key, value);
  }

  removeItem(key) {
    this.#values.delete(key);
  }

  key(index) {
    return [...this.#values.keys()][index] ?? null;
  }

  get length() {
    return this.#values.size;
  }
}

// Frames of the server.

export const accepted = (id, generationId = `gen_${id}`) => ({
  type: "accepted",
  id,
  generation_id: generationId,
  model: "scripted",
  created_at: 1,
});
export const queued = (id, position, wait = null) => ({
  type: "queued",
  id,
  position,
  estimated_wait_s: wait,
});
export const started = (id) => ({ type: "started", id, prompt_tokens: 3, cached_tokens: 0 });
export const delta = (id, seq, text) => ({ type: "delta", id, seq, text });
export const usage = { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 2, total_tokens: 5 };
export const timings = { queue_s: 0, prefill_s: 0.1, ttft_s: 0.1, total_s: 0.2, tokens_per_s: 10 };
export const done = (id, seq, finishReason = "stop") => ({
  type: "done",
  id,
  seq,
  finish_reason: finishReason,
  usage,
  timings,
});
export const failed = (id, code, more = {}) => ({
  type: "error",
  ...(id === null ? {} : { id }),
  error: { code, message: `about ${code}`, retryable: false, ...more },
});
