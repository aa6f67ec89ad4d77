// One address, in the two forms that the transports want.

export interface Addresses {
  websocket: string;
  /** Below it are /sse and /send. */
  http: string;
  query: URLSearchParams;
}

/**
 * `url` is ws(s)://, http(s):// or a path of this page ("/realtime"). Undefined for a path where there is no page: on a
 * server that renders.
 */
export function addresses(url: string): Addresses | undefined {
  const page = typeof location === "object" ? location.href : undefined;
  if (page === undefined && !/^(ws|http)s?:/i.test(url)) return undefined;
  const { protocol, host, pathname, search } = new URL(url, page);
  const rest = `${/^(wss|https):/.test(protocol) ? "s" : ""}://${host}${pathname.replace(/\/$/, "")}`;
  return { websocket: `ws${rest}${search}`, http: `http${rest}`, query: new URLSearchParams(search) };
}
