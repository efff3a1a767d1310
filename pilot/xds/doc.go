// Package xds distributes configuration to Envoys and to the services of Writ
// over the aggregated discovery service (ADS), delta and state-of-the-world, and
// is the only door to go-control-plane's server and cache packages.
//
// The main entry is Server: Publish gives it a Snapshot (what each client shall
// have at one revision, made with a Builder), it drives every connected client
// there, and reports through Options.Events who connected, acknowledged and
// refused.
//
// Guarantees:
//   - A resource is marshaled once and shared by all clients that hold it; its
//     version is the hash of its content, so a client is sent a resource only when
//     its content differs from what that client was last told.
//   - Make before break: clusters and endpoints that are new or changed go first,
//     listeners and routes follow when those are acknowledged and every new
//     cluster has its endpoints, and what is no longer used is removed last.
//     Endpoints alone go out at once.
//   - Filters before routes: while routes change, an Envoy has filters that do for
//     those of before and of after (Options.Between). A filter that a client refuses
//     holds back the routes that want it (Options.Served), and nothing else.
//   - Endpoints that say something for listeners say it until these have changed
//     (Options.BetweenEndpoints).
//   - Routes before a listener that would find them in an earlier version: a listener whose
//     routes the client does not use, and still has of one that drains, waits for them.
//     Where a response has all listeners, it has those too that wait, or waits itself.
//   - Routes of listeners that drain, which no snapshot has any more, are sent again if
//     Snapshot.Renew has something new for them, each client's by themselves. One that
//     refuses them keeps them, and nothing else waits for it.
//   - A client that has nothing yet (no initial_resource_versions) is answered
//     directly and completely.
//   - A newer snapshot replaces an older one at any stage; no client is walked
//     through revisions that nobody wants any more.
//   - What a client refused is not sent to it again until the next Publish.
//
// It does not: decide who a client is (Options.Identify does), decide what to do
// about a refusal (package revision does), or serve the single-type services and
// the REST form of xDS.
//
// Sources: Envoy's "xDS REST and gRPC protocol" document, sections "Incremental
// xDS", "Eventual consistency considerations" and "Wildcard subscriptions".
package xds
