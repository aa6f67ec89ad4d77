import { expect, test } from "vitest";
import { changed, snapshot } from "../src/presence.js";

const ada = { memberId: "ada", info: { name: "Ada" } };
const ben = { memberId: "ben" };

test("a snapshot, then differences", () => {
  const first = snapshot({ members: [ada] });
  expect(first).toEqual({ members: [ada], memberCount: 1, listed: true });
  const second = changed(first, { joined: [ben], left: [], memberCount: 2 });
  expect(second.members).toEqual([ada, ben]);
  const third = changed(second, { joined: [], left: [{ memberId: "ada" }], memberCount: 1 });
  expect(third).toEqual({ members: [ben], memberCount: 1, listed: true });
  expect(first.members).toEqual([ada]); // states are never changed
});

test("who is there already joins again, and who is gone leaves again", () => {
  const state = snapshot({ members: [ada] });
  const renamed = { memberId: "ada", info: { name: "Ada L." } };
  expect(changed(state, { joined: [renamed], left: [ben], memberCount: 1 }).members).toEqual([renamed]);
});

test("above the number that is listed, there is only the number", () => {
  expect(snapshot({ memberCount: 1_200 })).toEqual({ members: [], memberCount: 1_200, listed: false });
  const many = changed(snapshot({ members: [ada] }), { memberCount: 1_001 });
  expect(many).toEqual({ members: [], memberCount: 1_001, listed: false });
  // Differences to a list that is not there make no list.
  expect(changed(many, { joined: [ben], left: [], memberCount: 1_000 })).toEqual({
    members: [],
    memberCount: 1_000,
    listed: false,
  });
});

test("where presence is not allowed, nobody is seen", () => {
  expect(snapshot({})).toEqual({ members: [], memberCount: 0, listed: false });
});
