package attest

import (
	"strings"
	"testing"
)

func TestContainerOf(t *testing.T) {
	a, b := strings.Repeat("a1", 32), strings.Repeat("b2", 32)
	const uid = "1f2c3d4e-0000-4111-8222-333344445555"
	under := strings.ReplaceAll(uid, "-", "_")
	for path, want := range map[string]container{
		"/":                                    {},
		"/system.slice/ssh.service":            {},
		"/docker/" + a:                         {id: a},
		"/system.slice/docker-" + a + ".scope": {id: a},
		"/docker/" + a + "/init.scope":         {id: a},
		"/machine.slice/libpod-" + a + ".scope/container": {id: a},
		"/machine.slice/libpod-conmon-" + a + ".scope":    {}, // podman's own monitor
		"/custom/" + a:                             {id: a},
		"/system.slice/nerdctl-" + a + ".scope":    {id: a},
		"/kubepods/besteffort/pod" + uid + "/" + a: {id: a, podUID: uid},
		"/kubepods/pod" + uid + "/crio-" + a:       {id: a, podUID: uid},
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-" + a + ".scope": {id: a, podUID: uid},
		"/kubepods.slice/kubepods-pod" + under + ".slice/crio-" + a + ".scope":                                              {id: a, podUID: uid},
		"/kubepods.slice/kubepods-pod" + under + ".slice":                                                                   {podUID: uid},
		"/system.slice/containerd.service/kubepods/x":                                                                       {},
		"/kubepods/burstable/pod" + strings.Repeat("9f", 16) + "/" + a:                                                      {id: a, podUID: strings.Repeat("9f", 16)},
		"/system.slice/containerd.service/kubepods-burstable-pod" + under + ".slice:cri-containerd:" + a:                    {id: a, delegated: true},
		"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + under + ".slice/cri-containerd-" + a + ".scope":      {id: a, podUID: uid},
		"/../../system.slice/docker-" + a + ".scope":                                                                        {id: a},

		// What a container makes within its own group does not count.
		"/docker/" + a + "/docker/" + b:                                    {id: a},
		"/docker/" + a + "/kubepods/pod" + uid + "/" + b:                   {id: a},
		"/system.slice/docker-" + a + ".scope/docker-" + b + ".scope":      {id: a},
		"/kubepods/pod" + uid + "/" + a + "/pod" + strings.Repeat("0", 32): {id: a, podUID: uid},
		// What a user makes within the groups that are his proves nothing.
		"/user.slice/user-1000.slice/user@1000.service/app.slice/docker-" + a + ".scope":               {id: a, delegated: true},
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + a + ".scope":              {id: a, delegated: true},
		"/user.slice/user-1000.slice/user@1000.service/kubepods.slice/kubepods-pod" + under + ".slice": {podUID: uid, delegated: true},

		// Nor what a service makes to which systemd leaves its own.
		"/system.slice/evil.service/kubepods/pod" + uid + "/" + a: {id: a, podUID: uid, delegated: true},

		"/docker/" + a[:63]:                  {},
		"/docker/" + a + "0":                 {},
		"/docker/" + strings.ToUpper(a):      {},
		"/system.slice/evil-" + a + ".scope": {},
		"/pod" + uid + "/x":                  {}, // not below the group of all pods
	} {
		if got := containerOf(path); got != want {
			t.Errorf("%s: %+v, want %+v", path, got, want)
		}
	}
}

func TestHierarchiesHaveToAgree(t *testing.T) {
	a, b := strings.Repeat("a1", 32), strings.Repeat("b2", 32)
	for text, want := range map[string]string{
		"0::/docker/" + a + "\n": a,
		"9:name=systemd:/docker/" + a + "\n4:memory:/docker/" + a + "\n0::/\n": a,
		"9:name=systemd:/docker/" + a + "\n4:memory:/docker/" + b + "\n":       "refused",
		"0::/\n": "",
	} {
		g, err := parseCgroups([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		got, err := g.container()
		if (err != nil) != (want == "refused") || err == nil && got.id != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	if _, err := parseCgroups([]byte("nonsense")); err == nil {
		t.Error("nonsense is taken")
	}
}

func TestWithin(t *testing.T) {
	first := cgroups{"memory": "/docker/a", "name=systemd": "/docker/a", "": "/"}
	for name, tc := range map[string]struct {
		of   cgroups
		want bool
	}{
		"the same":              {first, true},
		"below":                 {cgroups{"memory": "/docker/a/b", "name=systemd": "/docker/a", "": "/x"}, true},
		"in one hierarchy only": {cgroups{"memory": "/docker/a", "name=systemd": "/", "": "/"}, false},
		"beside":                {cgroups{"memory": "/docker/ab", "name=systemd": "/docker/a"}, false},
		"elsewhere":             {cgroups{"memory": "/evil/docker/a", "name=systemd": "/evil/docker/a"}, false},
		"nowhere":               {nil, false},
	} {
		if tc.of.within(first) != tc.want {
			t.Errorf("%s: %v", name, !tc.want)
		}
	}
	if (cgroups{"": "/"}).within(cgroups{"": "/"}) {
		t.Error("whose first process has no group of its own can be confirmed")
	}
}

// FuzzCgroup: whatever the names of groups are, an id is one of the path's names,
// and what is appended to a path with an id changes nothing.
func FuzzCgroup(f *testing.F) {
	id := strings.Repeat("a1", 32)
	f.Add("/docker/"+id, "/docker/"+id)
	f.Add("/kubepods.slice/kubepods-pod1.slice", "/x")
	f.Fuzz(func(t *testing.T, path, more string) {
		c := containerOf(path)
		if c.id != "" && !strings.Contains(path, c.id) {
			t.Errorf("%q: %+v", path, c)
		}
		if c.id == "" || strings.HasSuffix(path, "/") {
			return
		}
		if again := containerOf(path + "/" + more); again != c {
			t.Errorf("%q with %q: %+v, not %+v", path, more, again, c)
		}
	})
}
