import { useState } from "react";
import { Chat } from "./Chat";
import { Door } from "./Door";
import { signedIn, signIn, signOut } from "./storage";

/** The door, and behind it the chat. */
export function App() {
  const [name, setName] = useState(signedIn);
  if (!name) {
    return (
      <Door
        onEnter={(name) => {
          signIn(name);
          setName(name);
        }}
      />
    );
  }
  return (
    <Chat
      name={name}
      onSignOut={() => {
        signOut();
        setName("");
      }}
    />
  );
}
