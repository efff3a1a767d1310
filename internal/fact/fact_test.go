package fact_test

import (
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/fact"
)

func TestParse(t *testing.T) {
	sum := strings.Repeat("0a", 32)
	for s, want := range map[string]fact.Kind{
		"unix:uid:0":                              fact.UID,
		"unix:gid:4294967295":                     fact.GID,
		"unix:supplementary_gid:27":               fact.SupplementaryGID,
		"unix:path:/usr/bin/with:colon":           fact.Path,
		"unix:parent_path:/usr/bin/x":             fact.ParentPath,
		"unix:sha256:" + sum:                      fact.SHA256,
		"container:id:" + sum:                     fact.ContainerID,
		"docker:label:com.example.a:b:c":          fact.DockerLabel,
		"docker:label:empty:":                     fact.DockerLabel,
		"docker:image:registry:5000/a:1":          fact.DockerImage,
		"docker:image_id:sha256:" + sum:           fact.DockerImageID,
		"docker:name:web":                         fact.DockerName,
		"k8s:pod-uid:f4b5-not-checked":            fact.PodUID,
		"unix:uid:01":                             "",
		"unix:uid:-1":                             "",
		"unix:uid:4294967296":                     "",
		"unix:uid:":                               "",
		"unix:user:root":                          "",
		"uid:1":                                   "",
		"":                                        "",
		"unix:path:bin/x":                         "",
		"unix:sha256:" + sum + "00":               "",
		"unix:sha256:" + strings.ToUpper(sum):     "",
		"docker:label:a":                          "",
		"docker:label::a":                         "",
		"docker:name:":                            "",
		"unix:path:/a\nunix:uid:0":                "",
		"unix:path:/" + strings.Repeat("a", 5000): "",
	} {
		k, v, err := fact.Parse(s)
		if k != want || (err == nil) != (want != "") {
			t.Errorf("%.60q: kind %q, %v, want %q", s, k, err, want)
		}
		if err == nil && fact.Of(k, v) != s {
			t.Errorf("%q is written as %q", s, fact.Of(k, v))
		}
	}
}

// FuzzParse: what is taken has one written form.
func FuzzParse(f *testing.F) {
	f.Add("unix:uid:7")
	f.Add("docker:label:a:b")
	f.Fuzz(func(t *testing.T, s string) {
		if k, v, err := fact.Parse(s); err == nil && fact.Of(k, v) != s {
			t.Errorf("%q is written as %q", s, fact.Of(k, v))
		}
	})
}
