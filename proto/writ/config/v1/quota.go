// Package configpb is what pilot hands to the other services of Writ, and the
// names and bounds that both sides hold to.
package configpb

import "time"

// What a request to ratelimit says about a QuotaPolicy: the domain, and the first
// two entries of each descriptor, what PolicyRef gives and the index of the
// limit. An entry for each dimension of the limit follows.
const (
	QuotaDomain = "writ"
	// QuotaClosedDomain is that of limits that are not to be passed by without having been
	// counted: an answer says that all of them are known.
	QuotaClosedDomain = "writ.closed"
	QuotaPolicyKey    = "writ.policy"
	QuotaLimitKey     = "writ.limit"
	// QuotaHoldKey is the entry with a request's own name, under which a limit holds
	// something for it until it is over.
	QuotaHoldKey = "writ.hold"
	// QuotaLimitHeader is in each answer about a limit that refuses or could have.
	QuotaLimitHeader = "x-ratelimit-limit"
	// QuotaToldKey is in the metadata of answers about limits that the proxy would count
	// itself without one.
	QuotaToldKey = "told"
	// QuotaDoneKey is the entry that says that the request is over.
	QuotaDoneKey = "writ.done"
)

// What ratelimit can count: pilot hands out nothing beyond it, and ratelimit
// refuses a set of policies with anything beyond it.
const (
	// MaxQuotaLimits is how many limits a QuotaPolicy may have.
	MaxQuotaLimits = 64
	// MinQuotaEvery is the shortest window: below it the way through the network
	// takes longer.
	MinQuotaEvery = time.Millisecond
	// MaxQuotaEvery is the longest window, ten years: microseconds since the epoch
	// plus a window stay exact in the double that Redis computes with (2^53).
	MaxQuotaEvery = 87600 * time.Hour
	// MinHold and MaxHold bound for how long something is held for a request that does
	// not end: a request takes longer than the one, and a caller must not wait for a
	// crash longer than the other.
	MinHold = 100 * time.Millisecond
	MaxHold = time.Hour
)

// How a limit counts and where, if not by a sliding window in the shared store.
const (
	QuotaGCRA        = "gcra"
	QuotaConcurrency = "concurrency"
	QuotaLeased      = "leased"
	QuotaLocal       = "local"
	QuotaAssigned    = "assigned"
)

const (
	// QuotaCounterKey is the only entry of the buckets in which proxies report what they
	// let pass of an assigned limit: <namespace>/<policy>/<index>?<dimension>=<value>&...
	QuotaCounterKey = "writ.counter"
	// MinAssignedEvery is the shortest window of an assigned limit: Envoys report every
	// five seconds.
	MinAssignedEvery = 10 * time.Second
)

const (
	// MaxQuotaConcurrent is how many requests may be under way at most.
	MaxQuotaConcurrent = 10_000
	// DefaultQuotaTimeout is after how long a request that nobody ended is taken to
	// be over.
	DefaultQuotaTimeout = time.Minute
)

const (
	// MaxQuotaWeights is how many of those who share a limit may have a weight.
	MaxQuotaWeights = 256
	// MaxQuotaWeight is the largest weight.
	MaxQuotaWeight = 1000
	// MinFairEvery is the shortest window of a limit that is shared fairly: who may use how
	// much of it is found anew 32 times in a window.
	MinFairEvery = time.Second
)

// PlanName is what tables of plans, their columns and their plans may be called: a
// table's name is a file's and part of keys in Redis.
const PlanName = `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`
