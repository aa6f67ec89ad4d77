import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { RealtimeProvider } from "street-fast/react";
import { Chat } from "./Chat";

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <RealtimeProvider url="/realtime">
      <Chat room="room:general" />
    </RealtimeProvider>
  </StrictMode>,
);
