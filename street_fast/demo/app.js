// The chat page: what the server says goes into `rooms`, and what is in `rooms` is drawn.
//
// The protocol is that of __init__.py beside this file. Sent: join, leave, chat, typing, alive. Received: hello (who I
// am, which rooms there are), room (answer to join: members and recent messages), rooms (the list changed), chat,
// presence:join, presence:leave, typing, alive, error.
//
// Whatever people typed is put on the page as text, never as HTML.

import { Connection } from "/connection.js";

const TYPING_REFRESH_MS = 2_000; // the server forgets a typist after 5 s
const TYPING_IDLE_MS = 3_000;
const GROUP_MS = 5 * 60_000;
const RETURN_GRACE_MS = 15_000; // after a reconnect, people who come back too are no news
const ENTRIES_KEPT = 500;
const NEAR_BOTTOM_PX = 48;

const $ = (id) => document.getElementById(id);
const finalCodes = new Set(document.documentElement.dataset.finalCloseCodes.split(" ").map(Number));
const pageTitle = document.title;

const me = { id: null, name: "" };
/** @type {Map<string, Room>} */
const rooms = new Map();
let openRooms = []; // every room on the server, joined or not
let current = null;
let connection = null;

class Room {
  joined = false;
  members = new Map(); // member id -> name
  typing = new Set(); // member ids
  entries = []; // messages and notes, as drawn
  unread = 0;
  firstUnread = null; // the entry above which "New" stands
  draft = "";
  known = { members: new Map(), until: 0 }; // who was here before the connection was lost

  constructor(name) {
    this.name = name;
  }

  pending() {
    return this.entries.filter((entry) => entry.pending);
  }
}

// --- names and storage ---

const tidy = (text) => text.normalize("NFC").split(/\s+/).filter(Boolean).join(" ");

function nameProblem(name) {
  if (!name) return "Please type a name.";
  if ([...name].length > 32) return "That is too long: 32 characters at most.";
  if (/[\x00-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]|\p{Cs}/u.test(name)) return "That has characters nobody can see.";
  return "";
}

const roomName = (text) => tidy(text).toLowerCase().replaceAll(" ", "-").replace(/^#+/, "");
const roomProblem = (name) => (/^[^\s\p{C}]{1,32}$/u.test(name) ? "" : "A room needs a name of 1 to 32 characters.");

function secret() {
  // Stays in this browser: two tabs with one name are one member, and nobody else can be that member.
  let key = localStorage.getItem("street_fast.key");
  if (!key) {
    key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    localStorage.setItem("street_fast.key", key);
  }
  return key;
}

function rememberRooms() {
  sessionStorage.setItem("street_fast.rooms", JSON.stringify([...rooms.keys()]));
}

// --- from the server ---

const receive = {
  hello({ data }) {
    me.id = data.memberId;
    connection.established();
    openRooms = data.rooms;
    // What was written before the first connection is mine too.
    for (const room of rooms.values()) for (const entry of room.pending()) entry.from = me.id;
    for (const room of rooms.values()) connection.send("join", { room: room.name });
    paint($("me-avatar"), me.id, me.name);
    drawRooms();
  },

  rooms({ data }) {
    openRooms = data.rooms;
    drawRooms();
  },

  room({ data }) {
    const room = rooms.get(data.room);
    if (!room) return;
    room.known = { members: room.members, until: Date.now() + RETURN_GRACE_MS };
    room.joined = true;
    room.members = new Map(data.members.map((member) => [member.memberId, member.info.name]));
    room.typing = new Set();
    const pending = room.pending();
    const seen = new Map(room.entries.filter((entry) => entry.id).map((entry) => [entry.id, entry]));
    const missed = data.recent.filter((message) => !seen.has(message.id));
    for (const message of missed) {
      const mine = pending.find((entry) => entry.nonce === message.nonce && message.from === me.id);
      if (mine) Object.assign(mine, message, { pending: false });
      else room.entries.push(message);
    }
    room.entries.sort((a, b) => a.ts - b.ts);
    for (const entry of room.pending()) connection.send("chat", { room: room.name, text: entry.text, nonce: entry.nonce });
    if (room === current) draw();
    drawRooms();
  },

  chat({ channel, ts, data }) {
    const room = rooms.get(channel);
    if (!room) return;
    const sent = data.from === me.id && room.entries.find((entry) => entry.pending && entry.nonce === data.nonce);
    if (sent) {
      Object.assign(sent, data, { ts, pending: false });
      sent.element?.classList.remove("pending");
      if (sent !== room.entries.at(-1)) {
        // Others were faster: everybody sees the order of the server.
        room.entries.splice(room.entries.indexOf(sent), 1);
        room.entries.push(sent);
        if (room === current) draw();
      }
    } else {
      add(room, { ...data, ts });
    }
  },

  "presence:join"({ channel, ts, data }) {
    const room = rooms.get(channel);
    if (!room || room.members.has(data.memberId)) return;
    room.members.set(data.memberId, data.info.name);
    const back = Date.now() < room.known.until && room.known.members.has(data.memberId);
    if (!back && data.memberId !== me.id) add(room, { note: `${data.info.name} joined`, ts });
    if (room === current) drawMembers();
  },

  "presence:leave"({ channel, ts, data }) {
    const room = rooms.get(channel);
    if (!room || !room.members.has(data.memberId)) return;
    add(room, { note: `${room.members.get(data.memberId)} left`, ts });
    room.members.delete(data.memberId);
    room.typing.delete(data.memberId);
    if (room === current) drawMembers();
  },

  typing({ channel, data }) {
    const room = rooms.get(channel);
    if (!room || data.memberId === me.id) return;
    if (data.typing) room.typing.add(data.memberId);
    else room.typing.delete(data.memberId);
    if (room === current) drawTyping();
  },

  alive() {},

  error({ data }) {
    if (current) add(current, { note: `The server refused that: ${data.message}`, ts: Date.now() });
  },
};

function add(room, entry) {
  if (entry.text !== undefined && entry.from !== me.id && (room !== current || document.hidden)) {
    room.unread += 1;
    room.firstUnread ??= entry;
    drawRooms();
  }
  room.entries.push(entry);
  if (room.entries.length > ENTRIES_KEPT) room.entries.shift().element?.remove();
  if (room === current) append(entry, entry.from === me.id);
}

// --- what I do ---

function enter(name, { focus = true } = {}) {
  let room = rooms.get(name);
  if (!room) {
    room = new Room(name);
    rooms.set(name, room);
    rememberRooms();
    connection?.send("join", { room: name });
  }
  if (current) {
    current.draft = $("message").value;
    current.firstUnread = null;
    stopTyping();
  }
  current = room;
  room.unread = 0;
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  $("message").value = room.draft;
  fitComposer();
  draw();
  drawRooms();
  closeDrawers();
  if (focus && matchMedia("(hover: hover)").matches) $("message").focus();
}

function leave() {
  const room = current;
  stopTyping();
  connection.send("leave", { room: room.name });
  rooms.delete(room.name);
  rememberRooms();
  current = null;
  const next = rooms.keys().next().value;
  if (next) return enter(next);
  history.replaceState(null, "", location.pathname);
  draw();
  drawRooms();
}

function say(text) {
  const nonce = [...crypto.getRandomValues(new Uint32Array(2))].map((n) => n.toString(36)).join("");
  const entry = { from: me.id, name: me.name, text, nonce, ts: Date.now(), pending: true };
  current.firstUnread = null;
  add(current, entry);
  if (current.joined) connection.send("chat", { room: current.name, text, nonce });
}

const typing = { room: null, sentAt: 0, idleTimer: 0 };

function startTyping() {
  const now = Date.now();
  if (typing.room !== current || now - typing.sentAt > TYPING_REFRESH_MS) {
    connection.send("typing", { room: current.name, typing: true });
    Object.assign(typing, { room: current, sentAt: now });
  }
  clearTimeout(typing.idleTimer);
  typing.idleTimer = setTimeout(stopTyping, TYPING_IDLE_MS);
}

function stopTyping() {
  clearTimeout(typing.idleTimer);
  if (typing.room?.joined) connection.send("typing", { room: typing.room.name, typing: false });
  typing.room = null;
}

// --- drawing ---

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function paint(avatar, id, name) {
  avatar.textContent = [...name][0]?.toUpperCase() ?? "?";
  avatar.style.setProperty("--hue", String([...(id ?? "")].reduce((sum, char) => (sum * 31 + char.codePointAt(0)) % 360, 7)));
  return avatar;
}

/** The text with its web addresses as links. */
function rich(text) {
  return text.split(/(https?:\/\/[^\s<>"]*[^\s<>".,:;!?')\]])/).map((part, index) => {
    if (index % 2 === 0) return part;
    const link = element("a", "", part);
    link.href = part;
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
    return link;
  });
}

const isOnlyEmoji = (text) =>
  text.length <= 24 && /^(?:\p{Extended_Pictographic}|\p{Emoji_Modifier}|\p{Regional_Indicator}|[\u200d\ufe0f ])+$/u.test(text);

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });

function entryElement(entry, previous) {
  if (entry.note !== undefined) return element("p", "note", entry.note);
  const own = entry.from === me.id;
  const continued = previous?.from === entry.from && previous.text !== undefined && entry.ts - previous.ts < GROUP_MS;
  const item = element("article", "message");
  item.classList.toggle("own", own);
  item.classList.toggle("continued", continued);
  item.classList.toggle("pending", Boolean(entry.pending));
  const name = element("strong", "", own ? "You" : entry.name);
  const time = element("time", "", clock.format(entry.ts));
  time.dateTime = new Date(entry.ts).toISOString();
  const bubble = element("p", "bubble", ...rich(entry.text));
  bubble.dir = "auto";
  bubble.title = time.textContent;
  bubble.classList.toggle("emoji", isOnlyEmoji(entry.text));
  if (!own) item.append(paint(element("span", "avatar"), entry.from, entry.name));
  item.append(element("p", "byline", name, " ", time), bubble);
  item.querySelector(".avatar")?.setAttribute("aria-hidden", "true");
  return item;
}

function append(entry, follow) {
  const log = $("log");
  const atBottom = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_BOTTOM_PX;
  log.querySelector(".empty")?.remove();
  const index = current.entries.indexOf(entry);
  entry.element = entryElement(entry, current.entries[index - 1]);
  if (entry === current.firstUnread) log.append(element("p", "new-line", "New"));
  log.append(entry.element);
  if (follow || atBottom) log.scrollTop = log.scrollHeight;
  else if (entry.text !== undefined) showJump();
}

function showJump() {
  const jump = $("jump");
  jump.hidden = false;
  jump.textContent = "New messages ↓";
}

function draw() {
  const log = $("log");
  $("room").classList.toggle("roomless", !current);
  $("room-title").textContent = current ? current.name : "No room";
  $("leave-room").hidden = $("open-members").hidden = $("composer").hidden = !current;
  $("jump").hidden = true;
  log.setAttribute("aria-busy", "true"); // a room that is opened is not read out from the start
  log.replaceChildren();
  if (!current) {
    log.append(emptyState("Nowhere yet", "Choose a room on the left, or make one."));
  } else {
    $("message").placeholder = `Message #${current.name}`;
    $("message-label").textContent = `Message to ${current.name}`;
    log.setAttribute("aria-label", `Messages in ${current.name}`);
    current.entries.forEach((entry, index) => {
      entry.element = entryElement(entry, current.entries[index - 1]);
      if (entry === current.firstUnread) log.append(element("p", "new-line", "New"));
      log.append(entry.element);
    });
    if (!current.entries.length) {
      const [title, text] = current.joined
        ? ["Quiet in here", "Be the first to say something."]
        : ["One moment", "Opening the room."];
      log.append(emptyState(title, text));
    }
  }
  log.scrollTop = log.scrollHeight;
  requestAnimationFrame(() => log.removeAttribute("aria-busy"));
  drawMembers();
}

function emptyState(title, text) {
  return element("div", "empty", element("strong", "", title), element("span", "", text));
}

function drawMembers() {
  const members = [...(current?.members ?? [])].sort(
    ([a, nameA], [b, nameB]) => (b === me.id) - (a === me.id) || nameA.localeCompare(nameB),
  );
  $("member-count").textContent = String(members.length);
  $("open-members").setAttribute("aria-label", `Members: ${members.length}`);
  $("members-title").textContent = members.length ? `Here now (${members.length})` : "Here now";
  $("members").replaceChildren(
    ...members.map(([id, name]) => {
      const item = element("li", "member", paint(element("span", "avatar"), id, name), element("span", "member-name", name));
      item.dataset.member = id;
      item.firstChild.setAttribute("aria-hidden", "true");
      if (id === me.id) item.append(element("span", "tag", "you"));
      return item;
    }),
  );
  if (current && members.length === 1 && current.joined) {
    $("members").append(element("li", "member-hint", "Nobody else yet. Open this page in a second tab to see presence work."));
  }
  drawTyping();
}

function drawTyping() {
  const names = [...(current?.typing ?? [])].map((id) => current.members.get(id)).filter(Boolean);
  const sentence =
    names.length === 0 ? ""
    : names.length === 1 ? `${names[0]} is typing`
    : names.length === 2 ? `${names[0]} and ${names[1]} are typing`
    : "Several people are typing";
  const line = $("typing");
  if (line.textContent !== sentence) line.replaceChildren(sentence);
  line.classList.toggle("active", Boolean(sentence));
  for (const item of $("members").children) item.classList.toggle("is-typing", Boolean(current?.typing.has(item.dataset.member)));
}

function drawRooms() {
  const focused = document.activeElement?.dataset?.room;
  $("your-rooms").replaceChildren(...[...rooms.values()].map(roomItem));
  const others = openRooms.filter((name) => !rooms.has(name));
  $("more-rooms").replaceChildren(...others.map((name) => roomItem({ name, unread: 0 })));
  $("more-rooms-part").hidden = !others.length;
  if (focused) document.querySelector(`[data-room="${CSS.escape(focused)}"]`)?.focus();
  const unread = [...rooms.values()].reduce((sum, room) => sum + room.unread, 0);
  $("other-unread").hidden = !unread;
  $("other-unread").textContent = String(unread);
  $("open-rooms").setAttribute("aria-label", unread ? `Rooms, ${unread} unread` : "Rooms");
  document.title = `${unread ? `(${unread}) ` : ""}${current ? `#${current.name} · ` : ""}${pageTitle}`;
}

function roomItem({ name, unread }) {
  const button = element("button", "room-button", element("span", "hash", "#"), element("span", "room-name", name));
  button.type = "button";
  button.dataset.room = name;
  button.firstChild.setAttribute("aria-hidden", "true");
  if (current?.name === name) button.setAttribute("aria-current", "page");
  if (unread) {
    button.classList.add("has-unread");
    button.append(element("span", "badge", String(unread), element("span", "hidden-label", " unread")));
  }
  return element("li", "", button);
}

let countdown = 0;

function drawStatus({ phase, again = false, retryAt = 0, reason = "" }) {
  clearInterval(countdown);
  $("banner-count").textContent = "";
  if (phase !== "open") {
    for (const room of rooms.values()) {
      room.joined = false;
      room.typing.clear();
    }
    drawTyping();
  }
  const [short, sentence, action] = {
    connecting: again ? ["Reconnecting", "Reconnecting…", ""] : ["Connecting", "", ""],
    open: ["Connected", "", ""],
    waiting: ["Reconnecting", "Connection lost. Trying again", "Try now"],
    offline: ["Offline", "You are offline. The chat goes on when the network is back.", ""],
    ended: ["Disconnected", `The server ended the connection: ${reason}.`, "Connect again"],
  }[phase];
  $("log").classList.toggle("unsent", phase !== "open");
  $("link-state").dataset.phase = phase;
  $("link-state").textContent = short;
  $("banner").dataset.phase = phase;
  $("banner").hidden = !sentence;
  $("banner-text").textContent = sentence;
  $("banner-button").hidden = !action;
  $("banner-button").textContent = action;
  if (phase === "waiting") {
    const tick = () => ($("banner-count").textContent = `in ${Math.max(1, Math.ceil((retryAt - Date.now()) / 1000))} s`);
    tick();
    countdown = setInterval(tick, 1000);
  }
}

// --- wiring ---

function openDrawer(side) {
  closeDrawers();
  const panel = $(side === "rooms" ? "rooms-panel" : "members-panel");
  $("app").dataset.drawer = side;
  $(`open-${side}`).setAttribute("aria-expanded", "true");
  $("scrim").hidden = false;
  panel.querySelector("[data-close-drawer]").focus();
}

function closeDrawers() {
  const side = $("app").dataset.drawer;
  if (!side) return;
  delete $("app").dataset.drawer;
  $(`open-${side}`).setAttribute("aria-expanded", "false");
  $("scrim").hidden = true;
  $(`open-${side}`).focus();
}

function fitComposer() {
  const box = $("message");
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, 160)}px`;
  const left = box.maxLength - box.value.length;
  $("left").textContent = left <= 200 ? String(left) : "";
}

function submitMessage(event) {
  event?.preventDefault();
  const text = $("message").value.trim();
  if (!text || !current) return;
  $("message").value = "";
  fitComposer();
  stopTyping();
  say(text);
}

function switchRoom(step) {
  const names = [...rooms.keys()];
  const index = names.indexOf(current?.name);
  if (names.length) enter(names[(index + step + names.length) % names.length]);
}

function start(name) {
  me.name = name;
  sessionStorage.setItem("street_fast.name", name);
  localStorage.setItem("street_fast.name", name);
  $("welcome").hidden = true;
  $("app").hidden = false;
  $("me-name").textContent = name;
  paint($("me-avatar"), "", name);

  const query = new URLSearchParams({ user: name, key: secret() });
  const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/chat?${query}`;
  connection = new Connection(() => url, finalCodes, (event) => receive[event.type]?.(event), drawStatus);
  const wanted = roomFromAddress();
  const known = JSON.parse(sessionStorage.getItem("street_fast.rooms") ?? "null") ?? ["general"];
  for (const room of known) rooms.set(room, new Room(room));
  enter(wanted || known[0] || "general");
  connection.open();
}

function roomFromAddress() {
  try {
    const name = roomName(decodeURIComponent(location.hash.slice(1)));
    return roomProblem(name) ? "" : name;
  } catch {
    return ""; // the address holds a broken escape
  }
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}

setTheme(localStorage.getItem("street_fast.theme"));

$("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  setTheme(dark === "dark" ? "light" : "dark");
  localStorage.setItem("street_fast.theme", document.documentElement.dataset.theme);
});

$("welcome-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = tidy($("name").value);
  const problem = nameProblem(name);
  $("name-error").textContent = problem;
  $("name").setAttribute("aria-invalid", String(Boolean(problem)));
  if (problem) $("name").focus();
  else start(name);
});

$("new-room-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = roomName($("new-room").value);
  const problem = roomProblem(name);
  $("new-room-error").textContent = problem;
  if (problem) return $("new-room").focus();
  $("new-room").value = "";
  enter(name);
});

$("rooms-panel").addEventListener("click", (event) => {
  const button = event.target.closest("[data-room]");
  if (button) enter(button.dataset.room);
});

$("composer").addEventListener("submit", submitMessage);
$("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submitMessage(event);
});
$("message").addEventListener("input", () => {
  fitComposer();
  if ($("message").value.trim()) startTyping();
  else stopTyping();
});
$("message").addEventListener("blur", stopTyping);

$("leave-room").addEventListener("click", leave);
$("open-rooms").addEventListener("click", () => openDrawer("rooms"));
$("open-members").addEventListener("click", () => openDrawer("members"));
$("scrim").addEventListener("click", closeDrawers);
for (const button of document.querySelectorAll("[data-close-drawer]")) button.addEventListener("click", closeDrawers);
$("banner-button").addEventListener("click", () => connection.open());
$("sign-out").addEventListener("click", () => {
  sessionStorage.removeItem("street_fast.name");
  location.reload();
});

$("jump").addEventListener("click", () => {
  $("log").scrollTop = $("log").scrollHeight;
  $("message").focus();
});
$("log").addEventListener("scroll", () => {
  const log = $("log");
  if (log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_BOTTOM_PX) $("jump").hidden = true;
}, { passive: true });

addEventListener("hashchange", () => {
  const name = roomFromAddress();
  if (connection && name && name !== current?.name) enter(name);
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") closeDrawers();
  if (event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown") && connection) {
    event.preventDefault();
    switchRoom(event.key === "ArrowDown" ? 1 : -1);
  }
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden || !current?.unread) return;
  current.unread = 0;
  drawRooms();
});

const returning = sessionStorage.getItem("street_fast.name");
if (returning) {
  start(returning);
} else {
  $("welcome").hidden = false;
  $("name").value = localStorage.getItem("street_fast.name") ?? "";
  $("name").select();
  $("name").focus();
}
