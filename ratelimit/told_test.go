package ratelimit

import (
	"testing"
	"time"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// TestTold: an answer says that it counted all limits where a policy wants to know, and
// never if one of them is not known here.
func TestTold(t *testing.T) {
	s, _, _ := newServer(t)
	wants := policy("wants", false, per(1, time.Minute))
	wants.Told = true
	withQuotas(t, s, wants, policy("other", false, per(1, time.Minute)))
	known, other, unknown := quotaDesc("wants", 0, "ann"), quotaDesc("other", 0, "ann"), quotaDesc("nowhere", 0, "ann")
	if told := ask(t, s, configpb.QuotaDomain, other).GetDynamicMetadata().GetFields()[configpb.QuotaToldKey].GetBoolValue(); told {
		t.Error("told who did not want to know")
	}
	for range 2 { // passes, and is refused
		if told := ask(t, s, configpb.QuotaDomain, other, known).GetDynamicMetadata().GetFields()[configpb.QuotaToldKey].GetBoolValue(); !told {
			t.Error("not told")
		}
	}
	if told := ask(t, s, configpb.QuotaDomain, known, unknown).GetDynamicMetadata().GetFields()[configpb.QuotaToldKey].GetBoolValue(); told {
		t.Error("told although a limit is not known")
	}
}
