// Socket.IO on Node.js, with what its performance page advises: ws with its native add-on bufferutil (Node.js checks
// UTF-8 natively by itself), compression off (the default), and nothing but WebSocket.
// What a client says goes to a room by one emit. Prints "ready PORT".
import { createServer } from "node:http";
import { Server } from "socket.io";

const http = createServer();
const io = new Server(http, { transports: ["websocket"], serveClient: false });

io.on("connection", (socket) => {
  socket.on("join", async (room, done) => {
    await socket.join(room);
    done(room);
  });
  socket.on("say", (room, text, done) => {
    io.to(room).emit("say", text);
    done?.();
  });
});

http.listen({ port: 0, host: "127.0.0.1", backlog: 1024 }, () => console.log(`ready ${http.address().port}`));
