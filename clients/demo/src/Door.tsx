import { type FormEvent, useEffect, useRef, useState } from "react";
import { Icon } from "./Icon";
import { nameProblem, tidy } from "./names";
import { lastName } from "./storage";

export function Door({ onEnter }: { onEnter(name: string): void }) {
  const [problem, setProblem] = useState("");
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => {
    input.current?.focus();
    input.current?.select();
  }, []);

  function submit(event: FormEvent) {
    event.preventDefault();
    const name = tidy(input.current!.value);
    const problem = nameProblem(name);
    setProblem(problem);
    if (problem) input.current!.focus();
    else onEnter(name);
  }

  return (
    <main id="welcome">
      <form className="welcome-card" noValidate onSubmit={submit}>
        <Icon name="street" className="logo" />
        <h1>Come in and talk</h1>
        <p className="welcome-text">
          Rooms, who is here, who is typing. Pick a name to start; no account, and nothing is kept for long.
        </p>
        <label htmlFor="name">Your name</label>
        <input
          id="name"
          ref={input}
          defaultValue={lastName()}
          autoComplete="nickname"
          maxLength={32}
          spellCheck={false}
          enterKeyHint="go"
          required
          aria-invalid={problem !== ""}
          aria-describedby="name-error"
        />
        <p id="name-error" className="field-error" role="alert">
          {problem}
        </p>
        <button className="primary" type="submit">
          Start chatting
        </button>
      </form>
      <p className="welcome-foot">
        Served by <strong>street_fast</strong>. Open a second tab to talk to yourself.
      </p>
    </main>
  );
}
