// Package configpb is what pilot hands to the other services of Writ, and the
// names and bounds that both sides hold to.
package configpb

import "time"

// What a request to ratelimit says about a QuotaPolicy: the domain, and the first
// two entries of each descriptor, the policy's resource name and the index of the
// limit. An entry for each dimension of the limit follows.
const (
	QuotaDomain    = "writ"
	QuotaPolicyKey = "writ.policy"
	QuotaLimitKey  = "writ.limit"
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
)
