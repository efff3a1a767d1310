package attest

import "testing"

// FuzzPods reads any list of pods that a kubelet may answer with.
func FuzzPods(f *testing.F) {
	for _, seed := range []string{
		`{"items": [{"metadata": {"name": "a", "namespace": "b", "uid": "c"}, "spec": {"serviceAccountName": "d"}}]}`, `{"items": [null, {}]}`, `{"items": 7}`, `[]`, "", `{"items": [{"metadata": {"uid": "c"}}, {"metadata": {"uid": "c"}}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		pods, err := parsePods(data)
		if (pods == nil) != (err != nil) {
			t.Errorf("%v and %v", pods, err)
		}
	})
}
