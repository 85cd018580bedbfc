/*
 * A real authorization server (RFC 6749, 7591, 7662, 8414, 8707, 9068): oidc-provider.
 *
 *     node provider.mjs FOLDER SETTINGS
 *
 * FOLDER is the `node_modules` that has oidc-provider.  SETTINGS is an object of JSON:
 * `port`, on 127.0.0.1; `keys` to sign with, private JSON Web Keys, the newest first;
 * `servers` by their resource indicators, each with `scope`, `format` (`jwt` or `opaque`),
 * `ttl`, and `behind`, seconds by which the clock that dates its tokens is slow; `clients`, each with `id`, `secret` and `scope`, for client credentials, or
 * with `redirects` for authorization codes.
 *
 * Clients may also register themselves, for authorization codes and refresh tokens.  Its pages
 * are the forms for development that oidc-provider has: any name and password will do, and all
 * that is asked for is granted.
 *
 * It prints its issuer when it listens, and ends with its standard input.
 */

import { pathToFileURL } from "node:url";
import path from "node:path";

const [modules, text] = process.argv.slice(2);
const { port, keys, servers, clients } = JSON.parse(text);
const start = pathToFileURL(path.join(modules, "oidc-provider", "lib", "index.js"));
const { Provider, errors } = await import(start);

const issuer = `http://127.0.0.1:${port}`;
const scopes = new Set(Object.values(servers).flatMap(({ scope }) => scope.split(" ")));
const provider = new Provider(issuer, {
  jwks: { keys },
  scopes: ["openid", "offline_access", ...scopes],
  clients: clients.map(({ id, secret, scope, redirects }) => ({
    client_id: id,
    ...(secret ? { client_secret: secret } : { token_endpoint_auth_method: "none" }),
    grant_types: redirects ? ["authorization_code", "refresh_token"] : ["client_credentials"],
    redirect_uris: redirects ?? [],
    response_types: redirects ? ["code"] : [],
    ...(scope ? { scope } : {}),
  })),
  clientDefaults: { id_token_signed_response_alg: keys[0].alg },
  issueRefreshToken: (ctx, client) => client.grantTypeAllowed("refresh_token"),
  // A client that has registered itself may ask for more scopes later than it did then.
  extraClientMetadata: {
    properties: ["registered_scope"],
    validator(ctx, name, value, metadata) {
      if (ctx) delete metadata.scope;
    },
  },
  formats: {
    customizers: {
      jwt(ctx, token, { payload }) {
        const behind = servers[payload.aud]?.behind ?? 0;
        payload.iat -= behind;
        payload.exp -= behind;
      },
    },
  },
  features: {
    devInteractions: { enabled: true },
    clientCredentials: { enabled: true },
    introspection: { enabled: true, allowedPolicy: () => true },
    revocation: { enabled: true },
    registration: { enabled: true },
    dPoP: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      getResourceServerInfo: (ctx, resource) => {
        if (!servers[resource]) throw new errors.InvalidTarget();
        const { scope, format, ttl } = servers[resource];
        return {
          scope,
          audience: resource,
          accessTokenTTL: ttl ?? 3600,
          accessTokenFormat: format,
          ...(format === "jwt" ? { jwt: { sign: { alg: keys[0].alg } } } : {}),
        };
      },
    },
  },
});
provider.on("server_error", (ctx, error) => console.error(error));
provider.listen(port, "127.0.0.1", () => console.log(issuer));
process.stdin.resume().on("end", () => process.exit(0));
