import { expect, test } from "vitest";
import { nameOf, nameProblem, roomName, roomProblem, tidy } from "../src/names";

test.each(["Ada", "小林 直樹", "👩‍👩‍👧", "x".repeat(32), "<b>"])("%s is a name", (name) => {
  expect(nameProblem(name)).toBe("");
});

test.each(["", "a\u202eb", "a\u200bb", "\ud800", "x".repeat(33)])("%j is none", (name) => {
  expect(nameProblem(name)).not.toBe("");
});

test("spaces and forms do not matter", () => {
  expect(tidy("  Chloe\u0301   B ")).toBe("Chlo\u00e9 B");
});

test("the name is in the id, whatever is in the name", () => {
  expect(nameOf("Ada~5bd1d7")).toBe("Ada");
  expect(nameOf("a~b~5bd1d7")).toBe("a~b");
  expect(nameOf("guest-1")).toBe("guest-1");
});

test("a room is named as it is said", () => {
  expect(roomName("  #Lunch  Plans ")).toBe("lunch-plans");
  expect(roomProblem("lunch-plans")).toBe("");
  for (const name of ["", "two words", "a\u200bb", "x".repeat(33)]) expect(roomProblem(name)).not.toBe("");
});
