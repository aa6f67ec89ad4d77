import { type FormEvent, useCallback, useEffect, useState } from "react";
import type { Message } from "street-fast";
import { useChannel, useConnectionState, usePresence, useRealtime, useTyping } from "street-fast/react";

interface Line {
  name: string;
  text: string;
}

export function Chat({ room }: { room: string }) {
  const realtime = useRealtime();
  const state = useConnectionState();
  const { memberCount } = usePresence(room);
  const { typing, setTyping } = useTyping(room);
  const [messages, setMessages] = useState<Message<Line>[]>([]);
  const [name, setName] = useState(`guest ${Math.floor(Math.random() * 1000)}`);
  const [text, setText] = useState("");
  const [problem, setProblem] = useState("");

  useChannel<Line>(room, (message) => setMessages((messages) => merge(messages, [message])));

  // What was said before this page came, and again when some of it was missed for good.
  const load = useCallback(async () => {
    try {
      const { messages: earlier } = await realtime.history(room);
      setMessages((messages) => merge(earlier as Message<Line>[], messages));
    } catch (error) {
      setProblem(String(error));
    }
  }, [realtime, room]);
  useEffect(() => void load(), [load]);
  useEffect(() => realtime.on("gap", () => void load()), [realtime, load]);

  async function send(event: FormEvent) {
    event.preventDefault();
    if (!text) return;
    setText("");
    try {
      await realtime.publish(room, { name, text }); // waits for a connection, and arrives once
      setProblem("");
    } catch (error) {
      setProblem(`${text}: ${String(error)}`);
    }
  }

  return (
    <main>
      <h1>Chat</h1>
      <p>
        <output>{state}</output>, {memberCount} here
      </p>
      <ol>
        {messages.map((message) => (
          <li key={message.position}>
            <b>{message.data.name}</b> {message.data.text}
          </li>
        ))}
      </ol>
      <form onSubmit={send}>
        <input aria-label="your name" value={name} onChange={(event) => setName(event.target.value)} size={10} />
        <input
          aria-label="your message"
          value={text}
          onChange={(event) => {
            setText(event.target.value);
            setTyping(true);
          }}
          autoFocus
        />
        <button>Send</button>
      </form>
      <p>{typing.length > 0 && "somebody is typing …"}</p>
      <p role="alert">{problem}</p>
    </main>
  );
}

/** Both in order, each message once: a position belongs to one message. */
function merge(older: Message<Line>[], newer: Message<Line>[]): Message<Line>[] {
  return [...new Map([...older, ...newer].map((message) => [message.position, message])).values()];
}
