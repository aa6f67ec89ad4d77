// One address, in the forms that the transports want.

/**
 * The address of `url`, which is ws(s)://, http(s):// or a path of this page ("/realtime"), with another scheme, what is
 * below it, and one parameter more. Undefined for a path where there is no page: on a server that renders.
 */
export function address(url: string, scheme: "ws" | "http", path = "", name?: string, value?: string): string | undefined {
  const page = globalThis.location?.href;
  if (!page && !/^(ws|http)s?:/i.test(url)) return undefined;
  const found = new URL(url, page);
  found.protocol = found.protocol.replace(/ws|http/, scheme);
  found.pathname = found.pathname.replace(/\/$/, "") + path;
  if (value) found.searchParams.set(name!, value);
  return found.href;
}
