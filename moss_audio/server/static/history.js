/** Past recordings with what was found in them, in this browser only. Bounded: the oldest go first. */

const MAX_SESSIONS = 30;
const MAX_BYTES = 200 * 2 ** 20;

function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

let database;
async function store(mode) {
  database ??= new Promise((resolve, reject) => {
    const opening = indexedDB.open("moss-audio", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("sessions", { keyPath: "id" });
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
  return (await database).transaction("sessions", mode).objectStore("sessions");
}

/** Every session, the newest first: `{ id, name, created, duration, file, transcript, events, messages }`. */
export async function all() {
  const sessions = await finished((await store("readonly")).getAll());
  return sessions.sort((a, b) => b.created - a.created);
}

/** Keeps a session; false where it is too large to keep, or the browser keeps nothing. */
export async function keep(session) {
  if (session.file.size > MAX_BYTES / 2) return false;
  try {
    await finished((await store("readwrite")).put(session));
    let bytes = 0;
    for (const [i, { id, file }] of (await all()).entries()) {
      bytes += file.size;
      if (i >= MAX_SESSIONS || bytes > MAX_BYTES) await forget(id);
    }
    return true;
  } catch {
    return false;
  }
}

export async function forget(id) {
  await finished((await store("readwrite")).delete(id));
}

export async function forgetAll() {
  await finished((await store("readwrite")).clear());
}
