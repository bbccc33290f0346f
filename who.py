import math,sys,os
import numpy as np
from collections import Counter
from tests.simulate.fleet import Fleet
from tests.simulate.streams import NULLS,Simulation
name=sys.argv[1]; T=int(sys.argv[2])
fl=Fleet(Simulation(family=NULLS[name],runs=8,seed=303)); W=len(fl.keys); c=Counter(); f=Counter(); bets=Counter(); ent=[]
for b in fl.simulation.batches(T):
    fl.take(b,.7*math.log(21600)); ent.append(np.log(b.entropy).copy())
    worth=(fl.weights+fl.block.bets.mean_log_sr()).reshape(8,W); lm=np.logaddexp.reduce(worth,axis=1)
    for r in np.flatnonzero(lm>=math.log(21600)):
        k=fl.leading(worth[r]); key=fl.keys[k]; _,feat,where=key.split(":",2)
        col=r*W+k; B=fl.block.bets; bet=int(B.log_sr[:,col].argmax())
        fam=where.split("=")[0] if "," not in where else "cell"
        c[(feat,fam)]+=1; bets[bet]+=1
        if len(sys.argv)>3:
            e=np.array(ent)[-60:,r]; print(b.t,r,key,"bet",bet,"start",b.t-B.start[bet,col],"ent now",round(e[-1],2),"60 ago",round(e[0],2),"widen",round(float(fl.block.front.widening()[col]),2),"gains",np.round(fl.block.gain[:,col],1), "n near",int((worth[r]>worth[r].max()-2).sum()))
        fl.restart(r)
print(sum(c.values()),c.most_common(12),bets)
