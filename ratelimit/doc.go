// Package ratelimit is Writ's quota service: Envoy asks it over the rate limit
// protocol (RLS v3) whether a request is within its limits.
//
// In the mesh it gets QuotaPolicies from pilot and answers for the domain "writ"
// (package quota). Alone it answers for the domains in envoyproxy/ratelimit's
// YAML files and counts as that service does (package descriptors). The counters
// are in this process (package memory) or in Redis (packages redisstore and
// fallback), which is asked for each decision, or for shares (package lease).
//
// Guarantees: a quota slides, unless it says otherwise, so that never more passes
// than it says in any stretch of time as long as its window, in shares or not;
// several limits on one request are decided together, and a refused request takes
// from none of them. The limits of envoyproxy/ratelimit's files are fixed: they are
// kept in each window aligned to the epoch, up to twice as much may pass across the
// edge of two, and refused requests count (package limit). With Redis away an answer
// takes no more than 5 ms and limits are still enforced by each replica; the metric
// writ_ratelimit_store_degraded says so.
//
// Failure mode: open. A policy that is not known, or not yet, limits nothing and
// is counted in writ_ratelimit_unmatched_total; what happens when this service
// does not answer is the proxy's to decide (QuotaPolicy whenUnavailable).
//
// Protocol: https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/ratelimit/v3/rls.proto
package ratelimit
