// Package federated knows the bundles of other trust domains, which it fetches from
// their bundle endpoints (SPIFFE Federation), keeps on disk, and goes on with while
// an endpoint is away. What an endpoint says counts for its own trust domain and no
// other.
package federated
