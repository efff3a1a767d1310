package quota

import (
	"fmt"
	"time"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
)

// ruleOf is what a limit of a policy admits, and where that is counted.
func ruleOf(l *configpb.Limit) (limit.Limit, limit.Mode, error) {
	mode, err := modeOf(l.GetMode())
	if err != nil {
		return limit.Limit{}, 0, err
	}
	if err := l.GetEvery().CheckValid(); err != nil {
		return limit.Limit{}, 0, fmt.Errorf("every: %w", err)
	}
	rule, err := algorithmOf(l, l.GetEvery().AsDuration())
	if err != nil {
		return limit.Limit{}, 0, fmt.Errorf("every: %w", err)
	}
	return rule, mode, nil
}

func algorithmOf(l *configpb.Limit, every time.Duration) (limit.Limit, error) {
	switch l.GetAlgorithm() {
	case "":
		return limit.New(limit.Sliding, l.GetRequests(), every)
	case configpb.QuotaGCRA:
		return limit.NewGCRA(l.GetRequests(), every, max(l.GetBurst(), 1))
	case configpb.QuotaConcurrency:
		return limit.New(limit.Concurrency, l.GetRequests(), every)
	default:
		return limit.Limit{}, fmt.Errorf("unknown algorithm %q", l.GetAlgorithm())
	}
}

func modeOf(mode string) (limit.Mode, error) {
	switch mode {
	case "", configpb.QuotaAssigned: // what proxies are assigned is counted exactly
		return limit.Exact, nil
	case configpb.QuotaLeased:
		return limit.Leased, nil
	case configpb.QuotaLocal:
		return limit.Local, nil
	default:
		return 0, fmt.Errorf("unknown mode %q", mode)
	}
}
